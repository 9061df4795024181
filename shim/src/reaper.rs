//! Children of this process: each that was made here has a waiter of its own; what is re-parented here is reaped.
//!
//! A child that is being made is not known yet. It must not be taken for an orphan, so nothing is reaped while a
//! [`Launch`] is held.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use log::{debug, warn};
use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};
use tokio::{
    io::Interest,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

mod sys;

pub(crate) use sys::{Watched, watch};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The program's, or 128 and the signal.
    pub status: u32,
    /// When it was seen.
    pub at: SystemTime,
}

/// Knows the children of this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    children: Mutex<Children>,
    /// There may be something to reap.
    look: Notify,
}

#[derive(Debug, Default)]
struct Children {
    known: HashSet<u32>,
    n_launches: usize,
}

/// A child is being made. While it is held, no orphan is reaped.
#[derive(Debug)]
pub struct Launch {
    reaper: Reaper,
}

/// A child that is known. Dropping it makes it an orphan.
#[derive(Debug)]
pub struct Child {
    reaper: Reaper,
    pid: u32,
}

impl Reaper {
    /// Reaps orphans for good. It needs a runtime with I/O.
    ///
    /// # Errors
    /// The kernel takes no handler for `SIGCHLD`.
    pub fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let mut ended = signal(SignalKind::child())?;
        let orphans = reaper.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = ended.recv() => {}
                    () = orphans.shared.look.notified() => {}
                }
                orphans.reap();
            }
        });
        Ok(reaper)
    }

    /// Says that a child is being made.
    #[must_use]
    pub fn launch(&self) -> Launch {
        self.lock().n_launches += 1;
        Launch {
            reaper: self.clone(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Children> {
        self.shared
            .children
            .lock()
            .unwrap_or_else(|e| e.into_inner())
    }

    /// The kernel shows the same ended child again until it is reaped, so a known one ends the search; its waiter
    /// asks for another.
    fn reap(&self) {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            let children = self.lock();
            if children.n_launches > 0 {
                return;
            }
            let pid = match waitid(Id::All, look) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid,
                Ok(_) | Err(Errno::ECHILD) => return,
                Err(Errno::EINTR) => continue,
                Err(e) => return warn!("cannot look for ended children: {e}"),
            };
            if children.known.contains(&pid.as_raw().cast_unsigned()) {
                return;
            }
            debug!("reaped the orphan {pid}");
            if let Err(e) = reap_one(pid) {
                return warn!("cannot reap the orphan {pid}: {e}");
            }
        }
    }
}

impl Launch {
    /// The child is made: from now on it is known.
    #[must_use]
    pub fn made(&self, pid: u32) -> Child {
        self.reaper.lock().known.insert(pid);
        Child {
            reaper: self.reaper.clone(),
            pid,
        }
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        self.reaper.lock().n_launches -= 1;
        self.reaper.shared.look.notify_one();
    }
}

impl Child {
    /// Waits until the child ends, and reaps it.
    ///
    /// # Errors
    /// `pidfd` is no child of this process.
    pub async fn wait(self, pidfd: Arc<OwnedFd>) -> io::Result<Exit> {
        let pidfd = watch(pidfd, Interest::READABLE)?;
        loop {
            let mut ready = pidfd.readable().await?;
            let id = WaitId::PidFd(pidfd.get_ref().as_fd());
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            if let Some(status) = rustix::process::waitid(id, options)? {
                return Ok(Exit {
                    status: exit_status(&status),
                    at: SystemTime::now(),
                });
            }
            ready.clear_ready();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.reaper.lock().known.remove(&self.pid);
        self.reaper.shared.look.notify_one();
    }
}

fn reap_one(pid: Pid) -> nix::Result<WaitStatus> {
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)
}

/// Source: the shells' convention that containerd keeps.
fn exit_status(status: &WaitIdStatus) -> u32 {
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    signal
        .or(status.exit_status())
        .map_or(255, i32::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use rustix::process::{PidfdFlags, pidfd_open};

    use super::*;

    #[expect(clippy::zombie_processes, reason = "it is what is tested that waits")]
    async fn run(script: &str) -> Exit {
        let reaper = Reaper::default();
        let launch = reaper.launch();
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let child = launch.made(child.id());
        drop(launch);
        tokio::time::timeout(Duration::from_secs(10), child.wait(Arc::new(pidfd)))
            .await
            .unwrap()
            .unwrap()
    }

    #[tokio::test]
    async fn tells_the_exit_and_the_signal() {
        assert_eq!(run("exit 7").await.status, 7);
        assert_eq!(run("kill -9 $$").await.status, 137);
    }

    fn state(pid: u32) -> Option<String> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, after) = stat.rsplit_once(')')?;
        after.split_whitespace().next().map(str::to_owned)
    }

    fn until(what: impl Fn() -> bool) {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !what() {
            assert!(std::time::Instant::now() < end, "it never came");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The child becomes known after it ended, and a launch holds the reaper back until then.
    #[test]
    fn takes_no_child_that_is_being_made() {
        let reaper = Reaper::default();
        let launch = reaper.launch();
        let mut child = Command::new("true").spawn().unwrap();
        until(|| state(child.id()).as_deref() == Some("Z"));
        reaper.reap();
        assert_eq!(state(child.id()).as_deref(), Some("Z"));
        let known = launch.made(child.id());
        drop(launch);
        reaper.reap();
        assert_eq!(state(child.id()).as_deref(), Some("Z"));
        drop(known);
        reaper.reap();
        assert_eq!(state(child.id()), None);
        assert!(child.wait().is_err());
    }
}
