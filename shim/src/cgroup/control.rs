//! Freezes, thaws and kills what is in a cgroup.

use std::{
    collections::BTreeSet,
    io,
    os::fd::AsFd,
    path::Path,
    sync::PoisonError,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, kill_process},
};

use super::{Cgroup, CgroupError, Version, folder};

/// How long processes may take to stand still: those that wait for a disk cannot at once.
const FREEZE_WITHIN: Duration = Duration::from_secs(5);
/// How often new processes of a cgroup that cannot be frozen are killed again.
const KILL_ROUNDS: usize = 64;

pub(super) fn freeze(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let _turn = cgroup.turn.lock().unwrap_or_else(PoisonError::into_inner);
    set(cgroup, true).inspect_err(|_| {
        // The failure to freeze is what the caller has to know.
        let _ = set(cgroup, false);
    })
}

pub(super) fn thaw(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let _turn = cgroup.turn.lock().unwrap_or_else(PoisonError::into_inner);
    set(cgroup, false)
}

fn set(cgroup: &Cgroup, is_frozen: bool) -> Result<(), CgroupError> {
    match (cgroup.version("freezer"), &cgroup.unified) {
        (Some(Version::V1), _) => match cgroup.folder("freezer") {
            Some(path) => set_v1(path, is_frozen),
            None => Ok(()),
        },
        (Some(Version::V2) | None, Some(path)) => set_v2(path, is_frozen),
        (Some(Version::V2) | None, None) => Err(CgroupError::Missing {
            field: "pause".to_owned(),
            what: "the controller freezer".to_owned(),
        }),
    }
}

fn write(path: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    folder::write(path, file, value).map_err(|source| CgroupError::Write {
        field: "pause, resume or kill".to_owned(),
        file: path.join(file),
        source,
    })
}

fn timeout(path: &Path, is_frozen: bool) -> CgroupError {
    CgroupError::Timeout {
        path: path.to_owned(),
        what: if is_frozen { "freeze" } else { "thaw" },
        within: FREEZE_WITHIN,
    }
}

/// Version 1 tells no event: its file is read until it says so. A process forked meanwhile may keep it at
/// `FREEZING` until it is told again.
///
/// Source: `Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst` of Linux 6.1.
fn set_v1(path: &Path, is_frozen: bool) -> Result<(), CgroupError> {
    let state = if is_frozen { "FROZEN" } else { "THAWED" };
    let deadline = Instant::now() + FREEZE_WITHIN;
    let mut pause = Duration::from_micros(50);
    loop {
        write(path, "freezer.state", state)?;
        if folder::read(path, "freezer.state")?.trim() == state {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(timeout(path, is_frozen));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Version 2 changes `cgroup.events` when all stand still, which poll(2) tells.
fn set_v2(path: &Path, is_frozen: bool) -> Result<(), CgroupError> {
    let read_error = |source: io::Error| CgroupError::Read {
        path: path.join("cgroup.events"),
        source,
    };
    let events = std::fs::File::open(path.join("cgroup.events")).map_err(read_error)?;
    write(path, "cgroup.freeze", if is_frozen { "1" } else { "0" })?;
    let deadline = Instant::now() + FREEZE_WITHIN;
    let wanted = if is_frozen { "frozen 1" } else { "frozen 0" };
    loop {
        let text = folder::read_open(events.as_fd()).map_err(read_error)?;
        if text.lines().any(|line| line == wanted) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(timeout(path, is_frozen));
        }
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(read_error(errno.into())),
        }
    }
}

pub(super) fn kill(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let _turn = cgroup.turn.lock().unwrap_or_else(PoisonError::into_inner);
    let is_complete = match &cgroup.unified {
        Some(path) => kill_unified(cgroup, path)?,
        None => false,
    };
    match (cgroup.version("freezer"), cgroup.folder("freezer")) {
        // What is frozen ends when it is thawed.
        (Some(Version::V1), Some(path)) if is_complete => thaw_all(path),
        (Some(Version::V1), Some(path)) => kill_frozen(cgroup, path),
        _ if is_complete => Ok(()),
        _ => kill_rounds(cgroup),
    }
}

/// From Linux 5.14 on, in one step, those too that are frozen on version 2 or that fork meanwhile. Answers whether
/// that was all: not for an older kernel, and not for those that somebody put into version 1's cgroup only.
fn kill_unified(cgroup: &Cgroup, path: &Path) -> Result<bool, CgroupError> {
    let mut known = BTreeSet::new();
    folder::pids(path, &mut known)?;
    let is_all = cgroup.v1.is_empty() || cgroup.pids()?.iter().all(|pid| known.contains(pid));
    match folder::write(path, "cgroup.kill", "1") {
        Ok(()) => Ok(is_all),
        Err(error) if folder::is_gone(&error) => Ok(false),
        Err(source) => Err(CgroupError::Write {
            field: "kill".to_owned(),
            file: path.join("cgroup.kill"),
            source,
        }),
    }
}

/// What is frozen forks no more, and its numbers are not given to others.
fn kill_frozen(cgroup: &Cgroup, path: &Path) -> Result<(), CgroupError> {
    if cgroup.pids()?.is_empty() {
        return Ok(());
    }
    // Even where some do not stand still in time, the others are killed, and all thawed.
    let result = match set_v1(path, true) {
        Ok(()) => signal_all(cgroup).map(drop),
        Err(_) => kill_rounds(cgroup),
    };
    result.and(thaw_all(path))
}

/// Thaws version 1's cgroup and those below, which a container may have frozen itself.
fn thaw_all(path: &Path) -> Result<(), CgroupError> {
    let file = "freezer.state";
    folder::write_below(path, file, "THAWED").map_err(|source| CgroupError::Write {
        field: "kill".to_owned(),
        file: path.join(file),
        source,
    })
}

/// Kills until no new process shows.
pub(super) fn kill_rounds(cgroup: &Cgroup) -> Result<(), CgroupError> {
    let mut before = BTreeSet::new();
    for _ in 0..KILL_ROUNDS {
        let killed = signal_all(cgroup)?;
        if killed.is_subset(&before) {
            return Ok(());
        }
        before = killed;
    }
    Ok(())
}

fn signal_all(cgroup: &Cgroup) -> Result<BTreeSet<u32>, CgroupError> {
    let pids: BTreeSet<u32> = cgroup.pids()?.into_iter().collect();
    for pid in &pids {
        let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else {
            continue;
        };
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => {
                return Err(CgroupError::Write {
                    field: "kill".to_owned(),
                    file: format!("/proc/{pid}").into(),
                    source: errno.into(),
                });
            }
        }
    }
    Ok(pids)
}
