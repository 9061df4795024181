//! A container's scope of systemd. The connection to it lives only as long as a call.
//!
//! systemd makes no scope without a process and ends one that is empty, but the container's first process is born
//! into the finished cgroup. So a child that only waits is the scope's first process until that one is in.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use cgroups_rs::systemd::{SystemdClient, props::PropertiesBuilder};

use super::{Cgroup, CgroupError, place::Place, sys::Idle};

/// systemd's folder in a system that it runs. Source: sd_booted(3).
const RUNNING: &str = "/run/systemd/system";
/// How long systemd may take.
const WITHIN: Duration = Duration::from_secs(10);

/// A scope, of this process or of an earlier one.
#[derive(Debug)]
pub(super) struct Scope {
    slice: String,
    unit: String,
    idle: Mutex<Option<Idle>>,
}

impl Scope {
    /// The scope of a place that has one.
    pub(super) fn of(place: &Place) -> Option<Self> {
        match place {
            Place::Scope { slice, unit, .. } => Some(Self {
                slice: slice.clone(),
                unit: unit.clone(),
                idle: Mutex::new(None),
            }),
            Place::Absolute(_) | Place::Relative(_) => None,
        }
    }

    /// Has systemd make the scope of a place that has one, and waits until it is there.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`], also where systemd does not run; [`CgroupError::Timeout`].
    pub(super) fn start(place: &Place, cgroup: &Cgroup) -> Result<Option<Self>, CgroupError> {
        let Some(scope) = Self::of(place) else {
            return Ok(None);
        };
        if !Path::new(RUNNING).is_dir() {
            return Err(scope.error("it does not run on this machine"));
        }
        let idle = Idle::start().map_err(|error| scope.error(error))?;
        let properties = PropertiesBuilder::default_cgroup(&scope.slice, &scope.unit)
            .pids(vec![idle.pid()])
            .build();
        let client =
            SystemdClient::new(&scope.unit, properties).map_err(|error| scope.error(error))?;
        if client.exists() {
            return Err(scope.error("a unit has this name already"));
        }
        client.start().map_err(|error| scope.error(error))?;
        let result = scope.wait_for(idle.pid(), cgroup);
        *scope.idle() = Some(idle);
        if let Err(error) = result {
            // The scope's own error would hide the cause.
            let _ = scope.stop();
            return Err(error);
        }
        Ok(Some(scope))
    }

    /// Waits until systemd has moved the first process: the answer to the call comes before that.
    fn wait_for(&self, pid: u32, cgroup: &Cgroup) -> Result<(), CgroupError> {
        let deadline = Instant::now() + WITHIN;
        let end = format!("/{}", self.unit);
        let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
        loop {
            let text = fs::read_to_string(&file).map_err(|source| CgroupError::Read {
                path: file.clone(),
                source,
            })?;
            let is_in = (text.lines())
                .filter(|line| line.starts_with("0::") || line.contains(":name=systemd:"))
                .any(|line| line.ends_with(&end));
            if is_in {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(CgroupError::Timeout {
                    path: cgroup.main().unwrap_or(Path::new("")).to_owned(),
                    what: "enter systemd's scope",
                    within: WITHIN,
                });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The container's first process is in.
    pub(super) fn settle(&self) {
        self.idle().take();
    }

    /// The waiting process, as long as there is one.
    pub(super) fn idle_pid(&self) -> Option<u32> {
        self.idle().as_ref().map(Idle::pid)
    }

    /// The unit's name.
    pub(super) fn unit(&self) -> &str {
        &self.unit
    }

    /// Has systemd forget the scope. One that is gone is fine.
    pub(super) fn stop(&self) -> Result<(), CgroupError> {
        self.settle();
        if !Path::new(RUNNING).is_dir() {
            return Ok(());
        }
        let client =
            SystemdClient::new(&self.unit, Vec::new()).map_err(|error| self.error(error))?;
        client.stop().map_err(|error| self.error(error))
    }

    fn idle(&self) -> MutexGuard<'_, Option<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, reason: impl ToString) -> CgroupError {
        CgroupError::Systemd {
            unit: self.unit.clone(),
            reason: reason.to_string(),
        }
    }
}
