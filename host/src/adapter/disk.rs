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
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

use super::program::{LIMIT, run};

/// The file in a sandbox's folder.
const IMAGE: &str = "image";
const MIB: u64 = 1024 * 1024;

/// A file system of fewer bytes holds nothing but itself.
const SMALLEST: u64 = 32 * MIB;

/// How long a sandbox waits for its part while others have theirs; a stop of the node may wait for it as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kernel gives the space back some time after a file is removed, and tells nobody.
const LOOK: Duration = Duration::from_millis(100);

/// Mounts a new file system of `mib` MiB at `target`, kept in a file of `folder`. None takes more than half of
/// what is free, so that all together do not fill the disk: while there is not enough, this waits for others, whose
/// folders are beside, to end, and in the end makes do with less.
pub(super) fn mount(folder: &Path, target: &Path, mib: u64) -> io::Result<()> {
    let image = folder.join(IMAGE);
    let file = File::create_new(&image)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    reserve(&file, folder, mib.saturating_mul(MIB))?;
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

/// Gives the file so many bytes, or in the end half of what is free.
fn reserve(file: &File, folder: &Path, size: u64) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    // One after the other: each sees what the one before it has taken, and who came first is served first.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let disk = fstatvfs(file)?;
        let half = disk.f_bavail.saturating_mul(disk.f_frsize) / 2;
        if half >= size || Instant::now() >= deadline || !has_others(folder)? {
            return take(file, size, half);
        }
        thread::sleep(LOOK);
    }
}

fn take(file: &File, size: u64, half: u64) -> io::Result<()> {
    let taken = size.min(half);
    if taken < SMALLEST {
        return Err(io::ErrorKind::StorageFull.into());
    }
    if taken < size {
        let (asked_mib, taken_mib) = (size / MIB, taken / MIB);
        tracing::warn!(
            asked_mib,
            taken_mib,
            "a sandbox has a smaller disk than its class says: the node's is full"
        );
    }
    Ok(fallocate(file, FallocateFlags::empty(), 0, taken)?)
}

/// Whether other sandboxes, whose folders are beside this one, have a part of the disk.
fn has_others(folder: &Path) -> io::Result<bool> {
    let beside = folder.parent().unwrap_or(folder);
    for entry in fs::read_dir(beside)? {
        let other = entry?.path();
        if other != folder && other.join(IMAGE).exists() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_at_most_half_and_never_next_to_nothing() {
        let file = tempfile::tempfile().unwrap();
        take(&file, 64 * MIB, 40 * MIB).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 40 * MIB);
        let refused = take(&file, 64 * MIB, SMALLEST - 1).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn only_the_parts_of_others_are_worth_a_wait() {
        let all = tempfile::tempdir().unwrap();
        let [mine, other] = ["mine", "other"].map(|name| all.path().join(name));
        for folder in [&mine, &other] {
            fs::create_dir(folder).unwrap();
        }
        File::create(mine.join(IMAGE)).unwrap();
        assert!(!has_others(&mine).unwrap());
        File::create(other.join(IMAGE)).unwrap();
        assert!(has_others(&mine).unwrap());
    }
}
