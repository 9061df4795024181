//! The system call that no crate wraps safely for each signal: sending one that has no name.
#![allow(unsafe_code, reason = "rustix takes named signals only")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::libc;

/// Sends a signal to the process behind `pidfd`; 0 only asks whether it may be sent.
///
/// # Errors
/// `ESRCH` when the process has ended; `EINVAL` for a number that is no signal.
///
/// Source: `pidfd_send_signal(2)`.
pub(super) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the call takes a descriptor, which stays open because it is borrowed, an integer, a pointer that may be
    // null and then stands for kill(2)'s information, and flags that must be 0. It writes no memory of ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            info,
            0,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, os::unix::process::ExitStatusExt, process::Command};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn sends_signals_with_and_without_a_name() {
        for signal in [libc::SIGKILL, libc::SIGRTMIN() + 3] {
            let mut child = Command::new("sleep").arg("100").spawn().unwrap();
            let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
            send_signal(pidfd.as_fd(), 0).unwrap();
            send_signal(pidfd.as_fd(), signal).unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(signal));
            let error = send_signal(pidfd.as_fd(), signal).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        }
    }
}
