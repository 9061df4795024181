//! The folder of sockets. The program of `shim/start` has this file too, and no standard library.

use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags, fstat},
    io,
    path::Arg,
    process::geteuid,
};

pub(crate) fn open(path: impl Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Nobody but its owner, who is this user or root, may put a socket there.
pub(crate) fn is_private(folder: &OwnedFd) -> io::Result<bool> {
    let status = fstat(folder)?;
    let owners = [0, geteuid().as_raw()];
    Ok(owners.contains(&status.st_uid) && status.st_mode & 0o022 == 0)
}
