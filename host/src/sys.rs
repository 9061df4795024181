//! System calls that no crate wraps safely: making namespaces in a child, switching links on and off.
#![allow(
    unsafe_code,
    reason = "fork, unshare in a child, ioctl and descriptors by number have no safe wrapper"
)]

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    libc,
    sys::wait::waitpid,
    unistd::{ForkResult, Pid, fork},
};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType},
    pipe::{PipeFlags, pipe_with},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

/// How many ids a user namespace made here has: 0 to 65,535 inside.
pub const IDS: u32 = 65_536;

/// A child process that does nothing but hold namespaces. Dropping it ends it.
#[derive(Debug)]
pub struct Holder {
    pid: Pid,
    /// The child ends when it reads the end of this pipe, also where this process is killed.
    _alive: OwnedFd,
}

impl Holder {
    /// Forks a child with a new user namespace and, where `has_net`, a network namespace that it owns.
    /// Ids from `first_id` on stand for 0 to 65,535 inside.
    ///
    /// # Errors
    /// `ENOSPC` or `EPERM` where the kernel allows no more namespaces.
    ///
    /// Source: clone(2), user_namespaces(7).
    pub fn new(first_id: u32, has_net: bool) -> io::Result<Self> {
        let (ready_read, ready_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (alive_read, alive_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut flags = UnshareFlags::NEWUSER;
        flags.set(UnshareFlags::NEWNET, has_net);
        // SAFETY: the child calls only raw system calls that are async-signal-safe, touches no memory
        // but its own stack, and never returns: `hold` diverges.
        let pid = match unsafe { fork() }? {
            ForkResult::Child => hold(flags, ready_write.as_fd(), alive_read.as_fd()),
            ForkResult::Parent { child } => child,
        };
        drop((ready_write, alive_read));
        let holder = Self {
            pid,
            _alive: alive_write,
        };
        let mut errno = [0; 4];
        if rustix::io::read(&ready_read, &mut errno)? != errno.len() {
            return Err(io::Error::other(
                "the child that makes namespaces was killed",
            ));
        }
        match i32::from_ne_bytes(errno) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{map}"), format!("0 {first_id} {IDS}"))?;
        }
        Ok(holder)
    }

    /// The path of one of the child's namespaces, such as `net`, valid while it lives.
    pub fn namespace(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.pid)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The child is ours until it is waited for, so its number is not another's.
        let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// What the child of [`Holder::new`] does: unshare, tell the outcome, wait for the end.
fn hold(flags: UnshareFlags, ready: BorrowedFd, alive: BorrowedFd) -> ! {
    close_others(ready.as_raw_fd(), alive.as_raw_fd());
    // SAFETY: the file descriptor table is not unshared (no CLONE_FILES), which is the call's one hazard.
    let outcome = unsafe { unshare_unsafe(flags) };
    let errno = outcome.map_or_else(rustix::io::Errno::raw_os_error, |()| 0);
    let _ = rustix::io::write(ready, &errno.to_ne_bytes());
    let _ = rustix::io::read(alive, &mut [0; 1]);
    // SAFETY: _exit takes an integer and runs no handlers of the copied process.
    unsafe { libc::_exit(0) }
}

/// Closes all descriptors of the child but two. A copy of a pipe's end would keep from its reader that
/// the writer is gone: the child's own pipe, and those of programs that other threads run.
///
/// Source: close_range(2), Linux 5.9.
fn close_others(one: i32, other: i32) {
    let (low, high) = (one.min(other), one.max(other));
    for (first, last) in [(0, low - 1), (low + 1, high - 1), (high + 1, i32::MAX)] {
        if first <= last {
            // SAFETY: the call takes integers; nothing in the child uses the descriptors it closes.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// The sockets that a service manager has handed to this process, in its order. Only the first call has them.
///
/// Source: sd_listen_fds(3).
pub fn inherited_sockets() -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let descriptors = sd_notify::listen_fds().into_iter().flatten();
    // SAFETY: the service manager opened these for this process (the call compares LISTEN_PID), nothing else here
    // knows of them, and TAKEN sees to it that they get one owner.
    descriptors
        .map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
        .collect()
}

/// Moves the calling thread into the network namespace behind `netns`.
///
/// The thread stays there: call it on a thread that ends with the work.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`; `EINVAL` where `netns` is no network namespace.
///
/// Source: setns(2).
pub fn enter_network(netns: BorrowedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(
        netns,
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Switches the loopback interface on in the calling thread's network namespace.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over it.
///
/// Source: netdevice(7).
pub fn loopback_up() -> io::Result<()> {
    let flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("two low bits");
    set_flags(&control_socket()?, &interface_name("lo")?, flags)
}

/// Switches a bridge of the calling thread's network namespace off and removes it.
/// Succeeds where there is none of that name.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over it.
///
/// Source: netdevice(7); `SIOCBRDELBR` of linux/sockios.h.
pub fn remove_bridge(name: &str) -> io::Result<()> {
    const SIOCBRDELBR: libc::Ioctl = 0x89a1;
    let socket = control_socket()?;
    let name = interface_name(name)?;
    match set_flags(&socket, &name, 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        switched => switched?,
    }
    // SAFETY: the descriptor is an open socket, and SIOCBRDELBR reads a name of IFNAMSIZ bytes, which
    // outlives the call.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRDELBR, name.as_ptr()) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn control_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A name as the kernel takes it: at most 15 bytes, filled up with zeros.
fn interface_name(name: &str) -> io::Result<[libc::c_char; libc::IFNAMSIZ]> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut padded = [0; libc::IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(padded)
}

fn set_flags(
    socket: &OwnedFd,
    name: &[libc::c_char; libc::IFNAMSIZ],
    flags: i16,
) -> io::Result<()> {
    let request = libc::ifreq {
        ifr_name: *name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    // SAFETY: the descriptor is an open socket, and SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let outcome =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
