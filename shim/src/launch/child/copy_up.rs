//! Copies what an image has in a folder into the new file system that is to hide it (`tmpcopyup`).

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, mkdirat, openat,
        readlinkat, statat, symlinkat,
    },
    io::Errno,
};

/// Folders inside each other, at most: the image's author chooses how many.
const MAX_DEPTH: usize = 64;

/// Copies folders, files and links from one folder into another; sockets and devices stay behind.
pub(super) fn copy(from: BorrowedFd, into: BorrowedFd) -> io::Result<()> {
    let from = openat(from, ".", FOLDER, Mode::empty())?;
    let into = openat(into, ".", FOLDER, Mode::empty())?;
    folder(from.as_fd(), into.as_fd(), 0)
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn folder(from: BorrowedFd, into: BorrowedFd, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(
            "there are too many folders inside each other",
        ));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let found = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(found.st_mode);
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                mkdirat(into, name, mode)?;
                let (from, into) = (
                    openat(from, name, FOLDER, Mode::empty())?,
                    openat(into, name, FOLDER, Mode::empty())?,
                );
                folder(from.as_fd(), into.as_fd(), depth + 1)?;
                fchmod(&into, mode)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let source = openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
                let copy = openat(into, name, flags | OFlags::CREATE | OFlags::WRONLY, mode)?;
                io::copy(&mut File::from(source), &mut File::from(copy.try_clone()?))?;
                fchmod(&copy, mode)?;
            }
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new())?;
                symlinkat(std::ffi::OsStr::from_bytes(target.as_bytes()), into, name)?;
            }
            _ => continue,
        }
        own(into, name, &found)?;
    }
    Ok(())
}

/// Ids that mean nobody in the container's user namespace cannot be given.
fn own(folder: BorrowedFd, name: &std::ffi::CStr, as_of: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(as_of.st_uid), Gid::from_raw(as_of.st_gid));
    match chownat(
        folder,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        Err(Errno::INVAL) => Ok(()),
        owned => Ok(owned?),
    }
}
