//! Makes files, directories and links beneath a directory's descriptor, following no link.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, linkat, mkdirat, openat,
        openat2, symlinkat, unlinkat,
    },
    io::Errno,
};

use super::header::Name;

/// Why an entry was not made.
#[derive(Debug)]
pub(super) enum PlaceError {
    /// Something else has its name, or that of a directory above it.
    Clash,
    /// A hard link's target, which is not there.
    NoTarget(String),
    Write(io::Error),
}

/// A directory that is filled.
pub(super) struct Tree<'a> {
    root: BorrowedFd<'a>,
    /// The directory that was last opened: most entries are in the same one as the entry before.
    last: Option<(Vec<OsString>, OwnedFd)>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, last: None }
    }

    /// A directory, and those above it. One that is there stays.
    pub(super) fn directory(&mut self, name: &Name) -> Result<(), PlaceError> {
        self.open(&name.0).map(|_| ())
    }

    /// An empty file. One that is there is replaced, as tar does.
    pub(super) fn file(&mut self, name: &Name, is_executable: bool) -> Result<File, PlaceError> {
        let mode = Mode::from_raw_mode(if is_executable { 0o755 } else { 0o644 });
        let file = self.place(name, |parent, base| {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, base, flags, mode)
        })?;
        // The process's mask may have taken bits away.
        fchmod(&file, mode).map_err(write)?;
        Ok(file.into())
    }

    /// A symbolic link. Whether its target is harmless was checked before.
    pub(super) fn symlink(&mut self, name: &Name, target: &OsStr) -> Result<(), PlaceError> {
        self.place(name, |parent, base| symlinkat(target, parent, base))
    }

    /// Another name for a file that is there.
    pub(super) fn hardlink(&mut self, name: &Name, target: &Name) -> Result<(), PlaceError> {
        let no_target = || PlaceError::NoTarget(target.to_path().to_string_lossy().into_owned());
        if name == target {
            return Err(no_target());
        }
        let (base, above) = target.0.split_last().ok_or_else(no_target)?;
        // Followed nowhere, so that the target is a name in this tree, and a regular file by this check.
        let from =
            beneath(self.root, above, OFlags::PATH | OFlags::DIRECTORY).map_err(|_| no_target())?;
        let file = openat(
            &from,
            base,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|_| no_target())?;
        let mode = fstat(&file).map_err(write)?.st_mode;
        if FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Err(no_target());
        }
        self.place(name, |parent, new| {
            linkat(&from, base, parent, new, AtFlags::empty())
        })
    }

    /// Makes something that must not be there; what is there is removed first where it is no directory.
    fn place<T>(
        &mut self,
        name: &Name,
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
    ) -> Result<T, PlaceError> {
        let (base, above) = name.0.split_last().ok_or(PlaceError::Clash)?;
        let parent = self.open(above)?;
        match make(parent, base) {
            Err(Errno::EXIST) => {
                match unlinkat(parent, base, AtFlags::empty()) {
                    Ok(()) => {}
                    Err(Errno::ISDIR | Errno::PERM) => return Err(PlaceError::Clash),
                    Err(error) => return Err(write(error)),
                }
                make(parent, base).map_err(write)
            }
            made => made.map_err(write),
        }
    }

    /// The directory of these components, made where it is not there.
    fn open(&mut self, components: &[OsString]) -> Result<BorrowedFd<'_>, PlaceError> {
        let is_same = |(last, _): &(Vec<OsString>, OwnedFd)| last.as_slice() == components;
        if !self.last.as_ref().is_some_and(is_same) {
            let directory = match beneath(self.root, components, OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => self.make(components)?,
                Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => return Err(PlaceError::Clash),
                directory => directory.map_err(write)?,
            };
            self.last = Some((components.to_vec(), directory));
        }
        let (_, directory) = self.last.as_ref().expect("it was set above");
        Ok(directory.as_fd())
    }

    /// Makes the directories that are not there, from the root down.
    fn make(&self, components: &[OsString]) -> Result<OwnedFd, PlaceError> {
        let mut directory =
            beneath(self.root, &[], OFlags::PATH | OFlags::DIRECTORY).map_err(write)?;
        for component in components {
            let one = std::slice::from_ref(component);
            let is_new = match mkdirat(&directory, component, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(write(error)),
            };
            let flags = if is_new {
                OFlags::RDONLY | OFlags::DIRECTORY
            } else {
                OFlags::PATH | OFlags::DIRECTORY
            };
            directory = match beneath(directory.as_fd(), one, flags) {
                Err(Errno::LOOP | Errno::NOTDIR) => return Err(PlaceError::Clash),
                next => next.map_err(write)?,
            };
            if is_new {
                fchmod(&directory, Mode::from_raw_mode(0o755)).map_err(write)?;
            }
        }
        Ok(directory)
    }
}

/// Opens what is beneath `root`, following no link on the way. No components name the root itself.
fn beneath(root: BorrowedFd<'_>, components: &[OsString], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path: std::path::PathBuf = components.iter().collect();
    let path = if components.is_empty() {
        Path::new(".")
    } else {
        &path
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn write(error: Errno) -> PlaceError {
    PlaceError::Write(error.into())
}
