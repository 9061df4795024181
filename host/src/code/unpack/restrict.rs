//! Gives up what unpacking does not need: files elsewhere, the network, other processes, capabilities, and
//! most system calls. A bug in a decompressor then reaches the target directory, and nothing else.

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use caps::CapSet;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use nix::libc;
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use super::Limits;

/// Address space: a zstd window of 128 MiB, and this program's own. Debug builds are large.
const MAX_MEMORY: u64 = 1 << 30;
const MAX_CPU_SECONDS: u64 = 120;
const MAX_FILES: u64 = 32;

/// Confines the calling thread for good: it may write beneath `directory` only, and reads what it has open.
/// Answers which layers this kernel lacks; each of the others holds by itself.
///
/// # Errors
/// A layer that every supported kernel has was refused.
///
/// Source: landlock(7), seccomp(2), capabilities(7), setrlimit(2).
pub(super) fn restrict(
    directory: BorrowedFd<'_>,
    limits: &Limits,
) -> io::Result<Vec<&'static str>> {
    let mut lacking = Vec::new();
    for (resource, most) in [
        (Resource::As, MAX_MEMORY),
        (Resource::Cpu, MAX_CPU_SECONDS),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Nofile, MAX_FILES),
        (Resource::Core, 0),
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit)?;
    }
    // Without the right to do so the calls that would use the network are filtered below.
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
        lacking.push("network namespace");
    }
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true)?;
    match landlock(directory).map_err(io::Error::other)? {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => lacking.push("parts of landlock"),
        RulesetStatus::NotEnforced => lacking.push("landlock"),
    }
    let filter = filter().map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter).map_err(io::Error::other)?;
    Ok(lacking)
}

fn drop_capabilities() -> io::Result<()> {
    // The bounding set first: that takes a capability. Without it there is nothing to drop.
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)
        .map_err(io::Error::other)?
    {
        caps::clear(None, CapSet::Bounding).map_err(io::Error::other)?;
    }
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    Ok(())
}

/// What unpacking does beneath the directory; everything else that files, ports and signals allow is denied.
fn landlock(directory: BorrowedFd<'_>) -> Result<RulesetStatus, RulesetError> {
    let needed = AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeDir
        | AccessFs::MakeReg
        | AccessFs::MakeSym
        | AccessFs::RemoveFile
        // A hard link between two directories is one.
        | AccessFs::Refer;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rule(PathBeneath::new(directory, needed))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// All else fails with `EPERM`.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules: BTreeMap<_, _> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, denied, SeccompAction::Allow, arch)?.try_into()
}

const ALLOWED: &[libc::c_long] = &[
    // The archive, and what is made of it: tree.rs, stream.rs.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fchmod,
    libc::SYS_mkdirat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // What the language and the C library do at any time, and at the end.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpStream, os::fd::AsFd as _, os::unix::net::UnixStream, process};

    use rustix::fs::{Mode, mkdirat};

    use super::*;

    /// Runs in a child process, since it cannot be undone: prints what it still can do.
    #[test]
    #[ignore = "a child process of the test below"]
    fn child_process() {
        let directory = fs::File::open(".").unwrap();
        let lacking = restrict(directory.as_fd(), &Limits::default()).unwrap();
        let outcomes = [
            ("write here", fs::write("inside", "x").is_ok()),
            (
                "make here",
                mkdirat(&directory, "directory", Mode::RWXU).is_ok(),
            ),
            ("read here", fs::read("inside").is_ok()),
            ("write there", fs::write("../outside", "x").is_ok()),
            (
                "write anywhere",
                fs::write("/tmp/outside-of-it", "x").is_ok(),
            ),
            ("list there", fs::read_dir("/").is_ok()),
            ("read there", fs::read("/etc/passwd").is_ok()),
            ("read memory", fs::read("/proc/self/maps").is_ok()),
            (
                "connect",
                TcpStream::connect("127.0.0.1:1").is_err_and(is_refused),
            ),
            (
                "connect to a socket",
                UnixStream::connect("/run/x").is_err_and(|e| !is_denied(&e)),
            ),
            (
                "start programs",
                process::Command::new("/bin/true").status().is_ok(),
            ),
            (
                "change rights",
                fs::set_permissions("/etc", fs::metadata(".").unwrap().permissions()).is_ok(),
            ),
        ];
        for (what, can) in outcomes {
            if can {
                eprintln!("can {what}");
            }
        }
        eprintln!("lacking {lacking:?}");
        process::exit(0);
    }

    fn is_refused(error: io::Error) -> bool {
        error.kind() == io::ErrorKind::ConnectionRefused
    }

    fn is_denied(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::PermissionDenied
    }

    #[test]
    fn a_confined_process_can_fill_its_directory_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let child = process::Command::new("/proc/self/exe")
            .args([
                "code::unpack::restrict::tests::child_process",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .current_dir(&inside)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(
            said.starts_with("can write here\ncan make here\nlacking ["),
            "{said}"
        );
        assert!(!dir.path().join("outside").exists());
    }
}
