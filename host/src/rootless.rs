//! The namespaces that an unprivileged node lives in: a user, a mount and a cgroup namespace, in which it is root.
//!
//! The process that keeps containerd makes them, and the daemon joins them; both stay in the machine's network. Root
//! inside is the node's user outside, and all other ids are subordinate ids of that user:
//!
//! ```text
//! inside                outside
//! 0                     the node's user
//! 1 to 65,535           subordinate ids: what images' files belong to
//! 65,536 and more       subordinate ids: 65,536 for each sandbox, no two share one
//! ```
//!
//! Inside, `/sys/fs/cgroup` is the cgroup that the service manager has delegated, `/run/containerd` is the node's own,
//! and `<run_dir>/uplink` has a network namespace of the node's, where the bridge of `nat` sandboxes is: an unprivileged
//! program, pasta, stands between it and the machine's network.
//!
//! What root has to do once, at install, is what `Prerequisite` names.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::{
    mount::{MountFlags, mount, mount_bind},
    process::{Pid, PidfdFlags, geteuid, getpid, pidfd_open},
    thread::{set_no_new_privs, set_thread_groups},
};

use crate::config::Config;

mod cgroup;
mod ids;

pub use ids::{Ids, MapError, map_ids};

/// The hidden subcommand that maps the ids of a new namespace, from outside of it.
pub const MAP_SUBCOMMAND: &str = "map-ids";
/// Ids that files of images may have: the first of those inside.
pub const IMAGE_IDS: u32 = 65_536;

/// Where the socket of a shim is, by the name that containerd's own library gives it.
const SHIM_SOCKETS: &str = "/run/containerd";

/// The node's namespaces cannot be made or joined.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    /// What root has to do once is not done.
    #[error("{what}; {remedy}")]
    Prerequisite {
        /// What is missing.
        what: String,
        /// What root has to do.
        remedy: String,
    },
    /// Ids cannot be mapped.
    #[error("the ids of the node's user namespace cannot be mapped")]
    Map(#[source] MapError),
    /// The kernel refused.
    #[error("cannot {what}")]
    Kernel {
        /// As in "make namespaces".
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Nothing keeps the node's containerd, so there is nothing to join.
    #[error(
        "no process keeps the node's containerd; start opr-containerd.service, or run `opr containerd`"
    )]
    NotThere,
}

/// Whether this process has no rights of its own, and so needs the namespaces.
pub fn is_needed() -> bool {
    !geteuid().is_root()
}

/// Makes the namespaces and moves this process into them. It must have one thread.
///
/// # Errors
/// See [`RootlessError`].
pub fn make(config: &mut Config) -> Result<(), RootlessError> {
    let ids = Ids::of_user().map_err(RootlessError::Map)?;
    let group = cgroup::Delegated::find()?;
    make_folders(config).map_err(kernel("make the node's folders"))?;
    let mut mapper = mapper().map_err(kernel("start this program again"))?;
    // The cgroup namespace begins at the cgroup that this process is in now.
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
        .map_err(|errno| kernel("make namespaces")(errno.into()))?;
    // The end of its input tells it that the namespace is there.
    drop(mapper.stdin.take());
    let mapped = mapper
        .wait_with_output()
        .map_err(kernel("wait for newuidmap"))?;
    if !mapped.status.success() {
        let text = String::from_utf8_lossy(&mapped.stderr).trim().to_owned();
        return Err(RootlessError::Map(MapError::Refused { text }));
    }
    set_thread_groups(&[]).map_err(|errno| kernel("leave groups")(errno.into()))?;
    // newuidmap was the last program that gets rights from its file.
    set_no_new_privs(true).map_err(|errno| kernel("give up new rights")(errno.into()))?;
    group.enter()?;
    mount_shim_sockets(&config.run_dir).map_err(kernel("bind the folder of shims' sockets"))?;
    make_uplink(&uplink(&config.run_dir)).map_err(kernel("make a network namespace"))?;
    ids.apply(config);
    Ok(())
}

/// Moves this process into the namespaces of the process `keeper`. It must have one thread.
///
/// # Errors
/// See [`RootlessError`].
pub fn join(config: &mut Config, keeper: Option<i32>) -> Result<(), RootlessError> {
    let keeper = keeper
        .and_then(Pid::from_raw)
        .ok_or(RootlessError::NotThere)?;
    let process = pidfd_open(keeper, PidfdFlags::empty()).map_err(|_| RootlessError::NotThere)?;
    let all = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    setns(&process, all).map_err(|errno| kernel("join the node's namespaces")(errno.into()))?;
    set_thread_groups(&[]).map_err(|errno| kernel("leave groups")(errno.into()))?;
    Ids::here().map_err(RootlessError::Map)?.apply(config);
    Ok(())
}

/// Where the network namespace of an unprivileged node is: `net`, and its `sys`.
pub fn uplink(run_dir: &Path) -> PathBuf {
    run_dir.join("uplink")
}

fn mapper() -> io::Result<std::process::Child> {
    Command::new("/proc/self/exe")
        .args([MAP_SUBCOMMAND, &getpid().as_raw_nonzero().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

/// Made outside, so that the node's user owns them.
fn make_folders(config: &Config) -> io::Result<()> {
    let shims = config.run_dir.join("shims");
    for path in [
        &config.state_dir,
        &config.run_dir,
        &shims,
        &uplink(&config.run_dir),
    ] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(path)?;
    }
    Ok(())
}

fn mount_shim_sockets(run_dir: &Path) -> io::Result<()> {
    Ok(mount_bind(run_dir.join("shims"), SHIM_SOCKETS)?)
}

/// A network namespace, pinned, with a sysfs that shows it. Its only link is its loopback; pasta adds another.
fn make_uplink(folder: &Path) -> io::Result<()> {
    let (net, sys) = (folder.join("net"), folder.join("sys"));
    fs::File::create(&net)?;
    fs::create_dir_all(&sys)?;
    let make = move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        crate::sys::loopback_up()?;
        mount_bind("/proc/thread-self/ns/net", &net)?;
        let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        Ok(mount("sysfs", &sys, "sysfs", closed, None)?)
    };
    let thread = std::thread::spawn(make);
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> RootlessError {
    move |source| RootlessError::Kernel { what, source }
}
