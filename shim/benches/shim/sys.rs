//! The one system call of the baseline that no crate has.

#![allow(unsafe_code, reason = "this module is where the calls are made")]

use std::io;

use nix::{libc, sched::CloneFlags};

/// Forks this process, which has one thread, into new namespaces. Answers the child's number, and nothing in the child.
///
/// Source: clone3(2).
pub(crate) fn clone3(flags: CloneFlags) -> io::Result<Option<i32>> {
    // As `struct clone_args` of Linux 5.5: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let args: [u64; 8] = [
        u64::from(flags.bits().cast_unsigned()),
        0,
        0,
        0,
        u64::from(libc::SIGCHLD.cast_unsigned()),
        0,
        0,
        0,
    ];
    // SAFETY: clone3 reads the array, which is of the size that is told and lives through the call. Without CLONE_VM the
    // child has a copy of this memory, and this process has no second thread whose locks it could inherit.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(i32::try_from(pid).ok()),
    }
}
