//! The cgroup that the service manager has delegated to an unprivileged node.
//!
//! ```text
//! <delegated>/node/              containerd, shims and pasta: a cgroup with limits below it has no processes itself
//! <delegated>/opr/<class>/<id>   sandboxes
//! ```

use std::{fs, io, os::fd::AsFd, path::PathBuf};

use rustix::{
    fs::{Access, CWD, access, statfs},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsmount,
        fsopen, move_mount,
    },
};

use super::{RootlessError, kernel};

const MOUNT: &str = "/sys/fs/cgroup";
/// Source: linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
/// Those without which limits do not hold.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
const WANTED: [&str; 2] = ["io", "cpuset"];

/// A cgroup whose children are ours to make: that of this process.
#[derive(Debug)]
pub(super) struct Delegated(());

impl Delegated {
    /// The cgroup of this process, where it is delegated.
    pub(super) fn find() -> Result<Self, RootlessError> {
        let is_unified = statfs(MOUNT).is_ok_and(|about| about.f_type.cast_unsigned() == CGROUP2);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let Some(own) = own_path(&own).filter(|_| is_unified) else {
            return Err(RootlessError::Prerequisite {
                what: format!("{MOUNT} is not cgroup version 2"),
                remedy: "boot with systemd.unified_cgroup_hierarchy=1".into(),
            });
        };
        let path = PathBuf::from(format!("{MOUNT}{own}"));
        let may_write = |file| access(path.join(file), Access::WRITE_OK).is_ok();
        if !may_write(".") || !may_write("cgroup.procs") || !may_write("cgroup.subtree_control") {
            return Err(RootlessError::Prerequisite {
                what: format!("cgroup {own} is not delegated to this user"),
                remedy: "run it as a service with Delegate=yes, as opr-containerd.service does"
                    .into(),
            });
        }
        let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        let missing = missing(&controllers);
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(RootlessError::Prerequisite {
                what: format!("cgroup {own} is delegated without {missing}"),
                remedy: "add `Delegate=cpu cpuset io memory pids` to the service, and for a user's service to \
                         user@.service"
                    .into(),
            });
        }
        Ok(Self(()))
    }

    /// From inside the new namespaces: shows this cgroup as the whole tree, moves this process down, and lets limits
    /// be set beside it.
    pub(super) fn enter(self) -> Result<(), RootlessError> {
        enter().map_err(kernel("use the delegated cgroup"))
    }
}

fn enter() -> io::Result<()> {
    mount_here()?;
    let top = PathBuf::from(MOUNT);
    let node = top.join("node");
    match fs::create_dir(&node) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => fs::write(node.join("cgroup.procs"), "0")?,
    }
    let has = fs::read_to_string(top.join("cgroup.controllers"))?;
    let is_there = |name: &&&str| has.split_whitespace().any(|has| has == **name);
    let chosen = NEEDED.iter().chain(&WANTED).filter(is_there);
    let line: Vec<_> = chosen.map(|name| format!("+{name}")).collect();
    fs::write(top.join("cgroup.subtree_control"), line.join(" "))
}

/// Mounted apart and moved: mount(2) refuses a file system on its own root.
fn mount_here() -> io::Result<()> {
    let tree = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(tree.as_fd())?;
    let closed = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tree = fsmount(tree.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, closed)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(tree.as_fd(), "", CWD, MOUNT, flags)?)
}

/// Of `/proc/self/cgroup`, version 2's line: `0::/path`.
fn own_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

fn missing(controllers: &str) -> Vec<&'static str> {
    let has = |name: &str| controllers.split_whitespace().any(|has| has == name);
    NEEDED.into_iter().filter(|name| !has(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_the_line_of_version_2() {
        assert_eq!(own_path("4:memory:/a\n0::/b/c\n"), Some("/b/c"));
        assert_eq!(own_path("4:memory:/a\n"), None);
    }

    #[test]
    fn controllers_without_which_limits_do_not_hold_are_told() {
        assert_eq!(missing("cpuset cpu io memory pids\n"), [""; 0]);
        assert_eq!(missing("memory pids\n"), ["cpu"]);
        assert_eq!(missing("cpuset hugetlb\n"), ["cpu", "memory", "pids"]);
    }
}
