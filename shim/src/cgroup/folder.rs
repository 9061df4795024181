//! A cgroup's folder: reads and writes its files, finds its processes, removes it with all below.
//!
//! What is below was perhaps made by the container, as deep and as wide as it liked: walks hold one descriptor,
//! know names only, and do not recurse.

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{self, AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};

use super::CgroupError;

/// Opens a folder.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(fs::open(path, flags, Mode::empty())?)
}

/// Opens a file of a cgroup for writing; never makes one.
pub(super) fn open_to_write(path: &Path, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(fs::open(path.join(name), flags, Mode::empty())?)
}

/// Writes a value by one call, as the kernel wants it.
pub(super) fn write(path: &Path, name: &str, value: &str) -> io::Result<()> {
    write_each(path, name, std::iter::once(value.to_owned()))
}

/// Writes values one after the other into one file.
pub(super) fn write_each(
    path: &Path,
    name: &str,
    values: impl Iterator<Item = String>,
) -> io::Result<()> {
    let mut file = std::fs::File::from(open_to_write(path, name)?);
    for value in values {
        let n_bytes = file.write(value.as_bytes())?;
        if n_bytes != value.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// Reads a file of a cgroup whole.
pub(super) fn read(path: &Path, name: &str) -> Result<String, CgroupError> {
    let path = path.join(name);
    std::fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })
}

/// Reads a file of a cgroup; nothing where there is none.
pub(super) fn read_if_any(path: &Path, name: &str) -> Result<Option<String>, CgroupError> {
    match read(path, name) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads an open file from its start.
pub(super) fn read_open(file: BorrowedFd<'_>) -> io::Result<String> {
    let mut text = vec![0; 4096];
    let n_bytes = rustix::io::pread(file, &mut text[..], 0)?;
    text.truncate(n_bytes);
    String::from_utf8(text).map_err(io::Error::other)
}

/// The processes of a cgroup and of all below. A cgroup that is gone has none.
pub(super) fn pids(path: &Path, found: &mut BTreeSet<u32>) -> Result<(), CgroupError> {
    let mut list = |folder: BorrowedFd<'_>| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = fs::openat(folder, "cgroup.procs", flags, Mode::empty())?;
        let text = match io::read_to_string(std::fs::File::from(file)) {
            // The processes of a cgroup with threads are those of the one above that it belongs to.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => return Ok(()),
            text => text?,
        };
        // Processes of other pid namespaces are 0.
        let pids = text.lines().filter_map(|line| line.parse::<u32>().ok());
        found.extend(pids.filter(|&pid| pid != 0));
        Ok(())
    };
    walk(path, &mut list, &mut |_, _| Ok(())).map_err(|source| CgroupError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Writes a value into a file of a cgroup and of all below, where they have it.
pub(super) fn write_below(path: &Path, name: &str, value: &str) -> io::Result<()> {
    let mut set = |folder: BorrowedFd<'_>| {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = fs::openat(folder, name, flags, Mode::empty())?;
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
    };
    walk(path, &mut set, &mut |_, _| Ok(()))
}

/// Removes a cgroup with all below; waits for one that is busy until the deadline. One that is gone is fine.
///
/// # Errors
/// `EBUSY` where it has processes still.
pub(super) fn remove(path: &Path, deadline: Instant) -> io::Result<()> {
    let mut pause = Duration::from_micros(200);
    loop {
        let result = match fs::rmdir(path) {
            Err(Errno::BUSY | Errno::NOTEMPTY) => {
                let mut below = |parent: BorrowedFd<'_>, name: &CStr| {
                    fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(io::Error::from)
                };
                // Whatever is left shows itself when the top cannot be removed.
                let _ = walk(path, &mut |_| Ok(()), &mut below);
                fs::rmdir(path)
            }
            result => result,
        };
        match result {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) if Instant::now() < deadline => {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Enters a folder and all below, the upper ones first, and leaves all but the top, the lower ones first.
/// Folders that vanish meanwhile are passed over.
fn walk(
    path: &Path,
    enter: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
    leave: &mut dyn FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
) -> io::Result<()> {
    let Some(mut current) = present(open(path))? else {
        return Ok(());
    };
    let mut levels = Vec::new();
    let mut names = Vec::new();
    if present(enter(current.as_fd()))?.is_some() {
        levels.push(folders(current.as_fd())?);
    }
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pop() {
            let Some(below) = present(open_at(current.as_fd(), &name))? else {
                continue;
            };
            current = below;
            names.push(name);
            levels.push(match present(enter(current.as_fd()))? {
                Some(()) => folders(current.as_fd())?,
                None => Vec::new(),
            });
            continue;
        }
        levels.pop();
        if let Some(name) = names.pop() {
            let Some(above) = present(open_at(current.as_fd(), c".."))? else {
                return Ok(());
            };
            current = above;
            // A folder that cannot be removed now does not keep the others from it.
            let _ = present(leave(current.as_fd(), &name));
        }
    }
    Ok(())
}

/// Nothing where the folder is gone.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A cgroup that was removed, before or after its folder was opened.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NODEV)
    )
}

fn open_at(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(fs::openat(parent, name, flags, Mode::empty())?)
}

/// The names of the folders in a folder.
fn folders(folder: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::NOENT | Errno::NODEV) => break,
            Err(error) => return Err(error.into()),
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_what_is_deeper_than_a_path_can_say() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("x");
        std::fs::create_dir(&path).unwrap();
        let mut current = open(&path).unwrap();
        let name = CString::new("d".repeat(200)).unwrap();
        for _ in 0..100 {
            for name in [&*name, c"wide"] {
                fs::mkdirat(&current, name, Mode::RWXU).unwrap();
            }
            current = open_at(current.as_fd(), &name).unwrap();
        }
        remove(&path, Instant::now()).unwrap();
        assert!(!path.exists());
        remove(&path, Instant::now()).unwrap();
    }

    #[test]
    fn follows_no_link() {
        let top = tempfile::tempdir().unwrap();
        let (kept, path) = (top.path().join("kept"), top.path().join("x"));
        std::fs::create_dir_all(kept.join("a")).unwrap();
        std::os::unix::fs::symlink(&kept, &path).unwrap();
        assert!(remove(&path, Instant::now()).is_err());
        assert!(kept.join("a").exists());
    }
}
