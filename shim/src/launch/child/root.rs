//! The container's root file system before it is the root: whatever lies in it is hostile. Nothing is reached
//! but below a descriptor, and links lead nowhere outside.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2},
    io::Errno,
};

use crate::launch::failure::{Failure, Step};

/// The type of a procfs, as statfs(2) tells it.
pub(super) const PROCFS: i64 = rustix::fs::PROC_SUPER_MAGIC;

/// The root of a container.
pub(super) struct Root(OwnedFd);

impl Root {
    pub(super) fn new(tree: BorrowedFd) -> Result<Self, Failure> {
        let root = openat(tree, ".", FOLDER, Mode::empty()).step("open the root file system")?;
        Ok(Self(root))
    }

    /// Of a process that is in its container already.
    pub(super) fn current() -> Result<Self, Failure> {
        Ok(Self(open_folder("/").step("open the root")?))
    }

    /// What `path` names, as the container would find it.
    pub(super) fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open_with(path, ResolveFlags::empty())
    }

    /// The same where no part of the path is a link.
    pub(super) fn open_plain(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open_with(path, ResolveFlags::NO_SYMLINKS)
    }

    fn open_with(&self, path: &Path, more: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        openat2(&self.0, path, flags, Mode::empty(), resolve)
    }

    /// A file below the root that is used as such, as a terminal is.
    pub(super) fn open_file(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(
            &self.0,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }

    /// The folder at `path`, made with all above it where it is absent.
    pub(super) fn make_folder(&self, path: &Path) -> Result<OwnedFd, Failure> {
        self.try_make_folder(path)
            .step_with(|| format!("make the folder {}", path.display()))
    }

    /// The file at `path`, made empty with all above it where it is absent.
    pub(super) fn make_file(&self, path: &Path) -> Result<OwnedFd, Failure> {
        let make = || {
            match self.open(path) {
                Err(Errno::NOENT) => {}
                found => return Ok(found?),
            }
            let (parent, name) = self.parent(path)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
            openat(
                &parent,
                &name,
                flags | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o644),
            )?;
            open_child(parent.as_fd(), &name)
        };
        make().step_with(|| format!("make the file {}", path.display()))
    }

    /// The folder that `path` is in, made where it is absent, and its name there.
    pub(super) fn parent(&self, path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok((self.try_make_folder(parent)?, name.into()))
    }

    fn try_make_folder(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open(path) {
            Err(Errno::NOENT) => {}
            found => return Ok(found?),
        }
        let mut prefix = PathBuf::from("/");
        let mut folder = self.open(&prefix)?;
        for part in path.components() {
            let Component::Normal(name) = part else {
                continue;
            };
            prefix.push(name);
            folder = match self.open(&prefix) {
                Err(Errno::NOENT) => {
                    // A link to nowhere is there: it is not followed, and the folder is not made.
                    mkdirat(&folder, name.as_bytes(), Mode::from_raw_mode(0o755))?;
                    open_child(folder.as_fd(), name.as_ref())?
                }
                found => found?,
            };
        }
        Ok(folder)
    }
}

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_child(parent: BorrowedFd, name: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(openat2(parent, name, flags, Mode::empty(), resolve)?)
}

/// A folder of the host, or of a container that the process is in.
pub(super) fn open_folder(path: &str) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, FOLDER, Mode::empty())?)
}

/// The host's `/proc`, taken before the container's file systems are there: no container can stand in for it.
pub(super) fn open_proc() -> Result<OwnedFd, Failure> {
    let proc = open_folder("/proc").step("open /proc")?;
    let found = rustix::fs::fstatfs(&proc).step("look at /proc")?;
    if found.f_type == PROCFS {
        return Ok(proc);
    }
    Err(Failure::new(
        "open /proc",
        io::Error::other("it is no procfs"),
    ))
}

/// Writes a kernel parameter of the calling process's namespaces.
pub(super) fn write_sysctl(proc: BorrowedFd, name: &str, value: &str) -> Result<(), Failure> {
    let path = Path::new("sys").join(name);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    openat2(proc, &path, flags, Mode::empty(), resolve)
        .and_then(|file| rustix::io::write(file.as_fd(), value.as_bytes()))
        .step_with(|| format!("set the kernel parameter {name}"))
        .map(drop)
}
