//! `delete`: removes what a container left behind when nobody serves it any more. A second run finds nothing and
//! answers the same.

use std::{fs, io, os::fd::AsFd, path::Path, time::SystemTime};

use containerd_shim::{api::DeleteResponse, protos::protobuf::MessageField};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mount::{UnmountFlags, unmount},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::Deserialize;

use super::BootstrapError;
use crate::{
    cgroup::{Cgroup, CgroupConfig},
    events::timestamp,
    socket,
    task::Record,
};

/// Killed, as the shells tell it.
const STATUS: u32 = 137;
/// How long a process may take to end after it was killed.
const END: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

#[derive(Default, Deserialize)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    cgroups_path: Option<String>,
}

/// Goes on past a failure and tells all of them.
pub(super) fn run(
    namespace: &str,
    id: &str,
    bundle: &Path,
) -> Result<DeleteResponse, BootstrapError> {
    let record = Record::read(bundle);
    let mut failures = Vec::new();
    let config = CgroupConfig {
        path: cgroups_path(bundle),
        id: id.to_owned(),
        namespace: namespace.to_owned(),
        systemd: record.is_some_and(|record| record.systemd_cgroup),
        resources: None,
    };
    let cgroup = Cgroup::open(&config);
    // Before its main process is waited for: a frozen one ends only once it is thawed, which this does.
    let killed = cgroup.as_ref().map_or(Ok(()), Cgroup::kill);
    if let Some(record) = &record
        && let Err(e) = end(record)
    {
        failures.push(format!("process {}: {e}", record.pid));
    }
    let removed = killed.and_then(|()| cgroup?.delete());
    if let Err(e) = removed {
        failures.push(format!("cgroup: {e}"));
    }
    if let Err(e) = detach(&bundle.join("rootfs")) {
        failures.push(format!("rootfs: {e}"));
    }
    if let Ok(address) = fs::read_to_string(bundle.join("address"))
        && let Err(e) = socket::remove_stale(&address)
    {
        failures.push(format!("socket: {e}"));
    }
    if !failures.is_empty() {
        return Err(BootstrapError::Cleanup {
            id: id.to_owned(),
            reason: failures.join("; "),
        });
    }
    Ok(DeleteResponse {
        pid: record.map_or(0, |record| record.pid),
        exit_status: STATUS,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    })
}

/// Kills the process, unless its pid is another's by now, and waits for its end.
fn end(record: &Record) -> io::Result<()> {
    let pid = i32::try_from(record.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    // The descriptor is of whoever has the pid now, and stays so: what is compared after it was opened, holds.
    if !record.is_alive() {
        return Ok(());
    }
    match pidfd_send_signal(pidfd.as_fd(), Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(e.into()),
    }
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    match poll(&mut fds, Some(&END))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// A bundle without a spec, or with a bad one, has the cgroup that its container's name gives.
fn cgroups_path(bundle: &Path) -> Option<String> {
    let text = fs::read(bundle.join("config.json")).ok()?;
    let spec: Spec = serde_json::from_slice(&text).ok()?;
    spec.linux.unwrap_or_default().cgroups_path
}

/// As often as something is mounted there.
fn detach(rootfs: &Path) -> io::Result<()> {
    loop {
        match unmount(rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}
