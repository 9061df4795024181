//! A sandbox's part of the disk: a file system of bounded size, in a file of the host's.
//!
//! The host alone writes the file, so the kernel never reads a file system that a sandbox has made. Its space is
//! reserved: what a sandbox has written can always be kept, and the node's own files find room beside it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

use super::program::{LIMIT, run};

/// The file in a sandbox's folder.
const IMAGE: &str = "image";
const MIB: u64 = 1024 * 1024;

/// A file system of fewer bytes holds nothing but itself.
const SMALLEST: u64 = 32 * MIB;

/// Mounts a new file system of `mib` MiB at `target`, kept in a file of `folder`. It is smaller where that would take
/// more than half of what is free: however many there are, they do not fill the disk.
pub(super) fn mount(folder: &Path, target: &Path, mib: u64) -> io::Result<()> {
    let image = folder.join(IMAGE);
    let file = File::create_new(&image)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    reserve(&file, mib.saturating_mul(MIB))?;
    // What a crash may leave of it is thrown away: a journal would be written for nothing.
    let make = ["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal"];
    let soon = ["-E", "lazy_itable_init=1,nodiscard"];
    run(
        Command::new("mke2fs").args(make).args(soon).arg(&image),
        b"",
        LIMIT,
    )?;
    let options = ["-t", "ext4", "-o", "loop,nosuid,nodev,noatime"];
    run(
        Command::new("mount").args(options).arg(&image).arg(target),
        b"",
        LIMIT,
    )?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o711))
}

/// Gives the file so many bytes, or half of what is free.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    // One after the other: each sees what the one before it has taken.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let disk = fstatvfs(file)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let size = size.min(free / 2);
    if size < SMALLEST {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(fallocate(file, FallocateFlags::empty(), 0, size)?)
}
