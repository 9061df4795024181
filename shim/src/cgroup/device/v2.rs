//! Device rules on version 2: a program that the kernel asks.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::io::Errno;

use super::{Policy, ebpf};
use crate::cgroup::{CgroupError, folder, sys};

/// Gives the cgroup at `path` this policy. The old program is replaced in one step, so that there is no moment
/// without any; further ones that others attached to this very cgroup are taken off after that.
pub(in crate::cgroup) fn apply(path: &Path, policy: &Policy) -> Result<(), CgroupError> {
    let program = ebpf::compile(policy);
    attach(path, &program).map_err(|source| CgroupError::Write {
        field: "linux.resources.devices".to_owned(),
        file: path.to_owned(),
        source,
    })
}

fn attach(path: &Path, program: &[ebpf::Instruction]) -> std::io::Result<()> {
    let cgroup = folder::open(path)?;
    let program = sys::load_device_program(program)?;
    let old: Vec<OwnedFd> = sys::device_programs(cgroup.as_fd())?;
    let replaced = old.first().map(AsFd::as_fd);
    let mut left = old.iter();
    match sys::attach_device_program(cgroup.as_fd(), program.as_fd(), replaced) {
        Ok(()) => drop(left.next()),
        // Before Linux 5.6 a program cannot be replaced: both hold for a moment, which only denies more.
        Err(error) if replaced.is_some() && is(&error, Errno::INVAL) => {
            sys::attach_device_program(cgroup.as_fd(), program.as_fd(), None)?;
        }
        Err(error) => return Err(error),
    }
    left.try_for_each(|old| sys::detach_device_program(cgroup.as_fd(), old.as_fd()))
}

fn is(error: &std::io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use crate::cgroup::{device::Policy, tests::Unified};

    use super::*;

    #[test]
    fn a_program_rules_real_processes_and_is_replaced() {
        let Some(cgroup) = Unified::new("devices") else {
            return;
        };
        let rules = |text: &str| serde_json::from_str::<Vec<_>>(text).unwrap();
        let is_ok = |command: &str| cgroup.run(command).success();
        assert!(is_ok("head -c1 /dev/zero && : </dev/kmsg"));

        let closed = rules(r#"[{"allow":false,"access":"rwm"}]"#);
        apply(&cgroup.path, &Policy::of_rules(&closed).unwrap()).unwrap();
        assert!(is_ok("head -c1 /dev/zero && echo >/dev/null"));
        assert!(!is_ok(": </dev/kmsg"));
        assert!(is_ok("mknod \"$TMP/x\" c 1 11 && ! ( : <\"$TMP/x\" )"));

        let opened = rules(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]"#,
        );
        apply(&cgroup.path, &Policy::of_rules(&opened).unwrap()).unwrap();
        assert!(is_ok(": </dev/kmsg"));
        assert!(!is_ok(": <>/dev/kmsg"));

        let denied = rules(
            r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"c","major":1,"minor":11,"access":"w"}]"#,
        );
        apply(&cgroup.path, &Policy::of_rules(&denied).unwrap()).unwrap();
        assert!(is_ok(": </dev/kmsg"));
        assert!(!is_ok(": <>/dev/kmsg"));
        let folder = folder::open(&cgroup.path).unwrap();
        assert_eq!(sys::device_programs(folder.as_fd()).unwrap().len(), 1);
    }

    #[test]
    fn a_second_program_of_others_is_taken_off() {
        let Some(cgroup) = Unified::new("programs") else {
            return;
        };
        let folder = folder::open(&cgroup.path).unwrap();
        let deny_all = ebpf::compile(&Policy::default());
        for _ in 0..2 {
            let program = sys::load_device_program(&deny_all).unwrap();
            sys::attach_device_program(folder.as_fd(), program.as_fd(), None).unwrap();
        }
        assert!(!cgroup.run("head -c1 /dev/zero").success());
        apply(&cgroup.path, &Policy::of_rules(&[]).unwrap()).unwrap();
        assert_eq!(sys::device_programs(folder.as_fd()).unwrap().len(), 1);
        assert!(cgroup.run("head -c1 /dev/zero").success());
    }
}
