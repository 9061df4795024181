//! System calls that no crate wraps safely.
#![allow(
    unsafe_code,
    reason = "clone3, execve's neighbours and mount attributes have no safe wrapper"
)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::libc;

/// Namespaces and more of a new process, as clone3(2) takes them: `CLONE_*`.
pub(crate) type CloneFlags = u64;

/// `CLONE_INTO_CGROUP` of linux/sched.h, Linux 5.7.
const CLONE_INTO_CGROUP: CloneFlags = 0x2_0000_0000;

/// Which side of a [`clone3`] one is.
#[derive(Debug)]
pub(crate) enum Side {
    /// The new process.
    Child,
    /// The one that asked for it.
    Parent {
        /// The child's number in the asking process's pid namespace.
        pid: u32,
        /// The child.
        pidfd: OwnedFd,
    },
}

/// Makes a process that goes on here with a copy of this one's memory. Its parent is this process's parent
/// where `flags` has `CLONE_PARENT`, and it is born into the cgroup of version 2 behind `cgroup`.
///
/// # Safety
/// This process has one thread only: no lock of another thread may be held in the copy for good.
///
/// # Errors
/// `EPERM` without rights over the namespaces; `ENOSPC` beyond their limits; `EAGAIN` beyond those of processes.
///
/// Source: clone(2), Linux 5.7 for `CLONE_INTO_CGROUP`.
unsafe fn clone3(flags: CloneFlags, cgroup: Option<BorrowedFd>) -> io::Result<Side> {
    let mut pidfd: libc::c_int = -1;
    let is_siblings = flags & as_flags(libc::CLONE_PARENT) != 0;
    // SAFETY: clone_args is a struct of integers, for which zero is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | as_flags(libc::CLONE_PIDFD);
    args.pidfd = &raw mut pidfd as u64;
    // A sibling takes over the signal of its maker.
    args.exit_signal = if is_siblings {
        0
    } else {
        as_flags(libc::SIGCHLD)
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    }
    // SAFETY: `args` and `pidfd` outlive the call, whose size is that of the struct; without CLONE_VM the child
    // has its own copy of all memory, and by this function's contract no other thread's lock is in it.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match pid {
        0 => Ok(Side::Child),
        1.. => Ok(Side::Parent {
            pid: u32::try_from(pid).expect("the kernel's numbers of processes are below 2^22"),
            // SAFETY: the kernel has just put a descriptor there that nothing else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A constant of libc as clone3 takes it.
pub(crate) const fn as_flags(flags: libc::c_int) -> CloneFlags {
    flags.cast_unsigned() as u64
}

/// Moves the calling process into namespaces: all that `kinds` (`CLONE_*`) names, of the process or namespace
/// behind `target`.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` over them; `EINVAL` where `target` is another kind of namespace.
///
/// Source: setns(2); Linux 5.8 for a process.
pub(crate) fn setns(target: BorrowedFd, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes two integers and touches no memory of ours; the descriptor is open, being borrowed.
    check(unsafe { libc::setns(target.as_raw_fd(), kinds) })
}

/// Gives the calling process new namespaces (`CLONE_NEW*`).
///
/// # Errors
/// `EPERM` without the rights, `ENOSPC` beyond the limit.
///
/// Source: unshare(2).
pub(crate) fn unshare(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes an integer; with CLONE_NEW* alone neither memory nor descriptors are unshared.
    check(unsafe { libc::unshare(kinds) })
}

/// Attributes of mounts, as mount_setattr(2) and fsmount(2) take them. Source: linux/mount.h.
pub(crate) mod attribute {
    /// `MOUNT_ATTR_RDONLY`.
    pub(crate) const RDONLY: u64 = 0x1;
    /// `MOUNT_ATTR_NOSUID`.
    pub(crate) const NOSUID: u64 = 0x2;
    /// `MOUNT_ATTR_NODEV`.
    pub(crate) const NODEV: u64 = 0x4;
    /// `MOUNT_ATTR_NOEXEC`.
    pub(crate) const NOEXEC: u64 = 0x8;
    /// The field of the three that follow.
    pub(crate) const ATIME: u64 = 0x70;
    /// `MOUNT_ATTR_RELATIME`.
    pub(crate) const RELATIME: u64 = 0x0;
    /// `MOUNT_ATTR_NOATIME`.
    pub(crate) const NOATIME: u64 = 0x10;
    /// `MOUNT_ATTR_STRICTATIME`.
    pub(crate) const STRICTATIME: u64 = 0x20;
    /// `MOUNT_ATTR_NODIRATIME`.
    pub(crate) const NODIRATIME: u64 = 0x80;
    /// `MOUNT_ATTR_IDMAP`.
    pub(crate) const IDMAP: u64 = 0x10_0000;
    /// `MOUNT_ATTR_NOSYMFOLLOW`.
    pub(crate) const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// What mount_setattr(2) is to change: [`attribute`]s, and a propagation (`MS_PRIVATE` and so on, or 0).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct MountAttributes {
    /// Set these.
    pub set: u64,
    /// Clear these first.
    pub clear: u64,
    /// Leave 0 to keep it.
    pub propagation: u64,
}

/// Changes the mount behind `mount`, or where `is_recursive` the whole tree. `userns` maps its ids where
/// `MOUNT_ATTR_IDMAP` is set.
///
/// # Errors
/// `EINVAL` where the file system cannot do it; `EPERM` for what a user namespace has locked.
///
/// Source: mount_setattr(2), Linux 5.12.
pub(crate) fn mount_setattr(
    mount: BorrowedFd,
    attributes: MountAttributes,
    is_recursive: bool,
    userns: Option<BorrowedFd>,
) -> io::Result<()> {
    let args = MountAttr {
        set: attributes.set,
        clear: attributes.clear,
        propagation: attributes.propagation,
        userns: userns.map_or(0, |fd| fd.as_raw_fd().cast_unsigned().into()),
    };
    let recursive = if is_recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::AT_EMPTY_PATH | recursive;
    // SAFETY: the descriptors are borrowed, the empty path is a C string, and `args` outlives the call, which
    // is told its size.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const args,
            size_of_val(&args),
        )
    };
    check_long(outcome)
}

/// The kind of the namespace behind `fd`, as one of `CLONE_NEW*`.
///
/// # Errors
/// `ENOTTY` where it is no namespace.
///
/// Source: ioctl_ns(2).
pub(crate) fn namespace_kind(fd: BorrowedFd) -> io::Result<libc::c_int> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the descriptor is open, being borrowed, and the request takes no memory.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(kind)
    }
}

/// Installs a seccomp filter on the calling thread. `flags` are `SECCOMP_FILTER_FLAG_*`.
///
/// # Errors
/// `EACCES` without `no_new_privs` or `CAP_SYS_ADMIN`; `EINVAL` for a filter that the kernel does not take.
///
/// Source: seccomp(2).
pub(crate) fn set_seccomp(filter: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads `len` instructions at `filter`, which outlives the call, and writes none.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    check_long(outcome)
}

/// Gives the calling process a session keyring of its own with this name.
///
/// # Errors
/// `EDQUOT` beyond the quota; `ENOSYS` on a kernel without keyrings.
///
/// Source: keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`.
pub(crate) fn join_session_keyring(name: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: the call reads the C string `name`, which outlives it.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            name.as_ptr(),
        )
    };
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets the execution domain of the calling process.
///
/// # Errors
/// `EINVAL` where the kernel knows no such domain.
///
/// Source: personality(2).
pub(crate) fn set_personality(domain: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the call takes an integer.
    if unsafe { libc::personality(domain) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets class and priority of the calling thread's input and output.
///
/// # Errors
/// `EPERM` for the realtime class without `CAP_SYS_ADMIN` or `CAP_SYS_NICE`.
///
/// Source: ioprio_set(2).
pub(crate) fn set_io_priority(class: u16, priority: u16) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    let value = libc::c_int::from(class) << 13 | libc::c_int::from(priority);
    // SAFETY: the call takes integers.
    check_long(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) })
}

/// How a thread is scheduled, as sched_setattr(2) takes it. Nanoseconds.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
#[repr(C)]
pub(crate) struct SchedulerAttributes {
    /// Of this struct, in bytes.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// 1 to 99.
    pub priority: u32,
    /// Of a deadline.
    pub runtime: u64,
    /// Of a deadline.
    pub deadline: u64,
    /// Of a deadline.
    pub period: u64,
}

/// Sets how the calling thread is scheduled.
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE`; `EINVAL` for values that the policy does not take.
///
/// Source: sched_setattr(2).
pub(crate) fn set_scheduler(attributes: &SchedulerAttributes) -> io::Result<()> {
    // SAFETY: the kernel reads `size` bytes of the struct, which are its own, and it outlives the call.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            0,
            std::ptr::from_ref(attributes),
            0,
        )
    };
    check_long(outcome)
}

/// Switches the loopback interface on in the calling process's network namespace.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over it.
///
/// Source: netdevice(7).
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    name[0] = b'l'.cast_signed();
    name[1] = b'o'.cast_signed();
    let flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("two low bits");
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    // SAFETY: the descriptor is an open socket, and SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let outcome =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(outcome)
}

/// Sees to it that no descriptor from `first` on outlives the next execve.
///
/// # Errors
/// `EINVAL` on a kernel before 5.11.
///
/// Source: close_range(2).
pub(crate) fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    close_range(first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes all descriptors but `kept` and the standard ones: for a fork that uses none of what it was left.
///
/// # Errors
/// `ENOSYS` on a kernel before 5.9.
///
/// Source: close_range(2).
pub(crate) fn close_all_but<const N: usize>(kept: [BorrowedFd; N]) -> io::Result<()> {
    let mut kept = kept.map(|fd| fd.as_raw_fd().cast_unsigned());
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().filter(|fd| *fd >= 3) {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, libc::c_uint::MAX, 0)
}

fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes integers. Descriptors that it closes are used by nobody: see who calls.
    let outcome = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check_long(outcome)
}

/// Makes `fd` the descriptor `number`, which stays open over execve.
///
/// # Errors
/// `EBADF` where the number is beyond the limit.
///
/// Source: dup(2).
pub(crate) fn dup_onto(fd: BorrowedFd, number: libc::c_int) -> io::Result<()> {
    let outcome = if fd.as_raw_fd() == number {
        // SAFETY: the call takes integers and changes a flag of a descriptor that is borrowed.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) }
    } else {
        // SAFETY: what had the number was one of the standard streams, which nothing in this process owns.
        unsafe { libc::dup2(fd.as_raw_fd(), number) }
    };
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Ends the process without running anything of it.
pub(crate) fn exit_now(code: libc::c_int) -> ! {
    // SAFETY: _exit takes an integer and runs no handlers.
    unsafe { libc::_exit(code) }
}

/// Splits this process in two. The child has one thread; call it while the parent has one too.
///
/// # Errors
/// `EAGAIN` beyond the limit of processes.
///
/// # Panics
/// Where this process has other threads.
///
/// Source: fork(2).
pub(crate) fn fork_alone() -> io::Result<Side> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    assert_eq!(threads, 1, "forked beside other threads");
    IS_ALONE.store(true, Ordering::Relaxed);
    let side = clone_alone(0, None);
    if let Ok(Side::Parent { .. }) | Err(_) = &side {
        IS_ALONE.store(false, Ordering::Relaxed);
    }
    side
}

/// Whether this process comes from [`fork_alone`], whose children never start a thread.
static IS_ALONE: AtomicBool = AtomicBool::new(false);

/// [`clone3`] in a process that comes from [`fork_alone`].
///
/// # Errors
/// As of [`clone3`].
///
/// # Panics
/// In any other process.
pub(crate) fn clone_alone(flags: CloneFlags, cgroup: Option<BorrowedFd>) -> io::Result<Side> {
    assert!(
        IS_ALONE.load(Ordering::Relaxed),
        "cloned beside other threads"
    );
    // SAFETY: this process had one thread when it was forked, and nothing in it starts another.
    unsafe { clone3(flags, cgroup) }
}

fn check(outcome: libc::c_int) -> io::Result<()> {
    check_long(outcome.into())
}

fn check_long(outcome: libc::c_long) -> io::Result<()> {
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets a limit (`RLIMIT_*`, soft and hard) of a process; 0 is the calling one.
///
/// # Errors
/// `EPERM` for a hard limit that is raised without `CAP_SYS_RESOURCE`; `EINVAL` for a soft one above it.
///
/// Source: prlimit(2).
pub(crate) fn set_rlimit(pid: u32, (resource, soft, hard): (u32, u64, u64)) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    prlimit(pid, resource, Some(&limit)).map(drop)
}

/// Raises a hard limit of a process to `hard`, unless it is as high; the soft one stays. 0 is the calling process.
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`.
///
/// Source: prlimit(2).
pub(crate) fn raise_rlimit(pid: u32, resource: u32, hard: u64) -> io::Result<()> {
    let mut limit = prlimit(pid, resource, None)?;
    if limit.rlim_max >= hard {
        return Ok(());
    }
    limit.rlim_max = hard;
    prlimit(pid, resource, Some(&limit)).map(drop)
}

fn prlimit(pid: u32, resource: u32, new: Option<&libc::rlimit64>) -> io::Result<libc::rlimit64> {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the kernel reads `new`, which is null or outlives the call, and writes `old`, which is ours.
    let outcome = unsafe { libc::prlimit64(pid.cast_signed(), resource, new, &raw mut old) };
    check(outcome).map(|()| old)
}

/// Gives the calling process the signal handling that a program expects: nothing is ignored or blocked.
///
/// # Errors
/// None that is known.
///
/// Source: signal(7): execve keeps what is ignored and blocked.
pub(crate) fn reset_signals() -> io::Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    /// `struct sigaction` of the kernel, which is not libc's; zero is the default action.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_SIZE: usize = 8;
    for signal in 1..=64 {
        // SAFETY: the kernel reads a struct that is no longer than `DEFAULT`, which outlives the call, and is given
        // no place for the old one; the default action runs no code of ours.
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null_mut::<u64>(),
                MASK_SIZE,
            )
        };
        match check_long(outcome) {
            // The two that cannot be caught have no other.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            set => set?,
        }
    }
    Ok(sigprocmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::empty()),
        None,
    )?)
}
