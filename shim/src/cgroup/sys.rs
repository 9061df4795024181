//! Calls that are not safe by their types: bpf(2) for device programs, a fork that only waits, tokio's watch.
#![allow(
    unsafe_code,
    reason = "bpf, fork and tokio's registration have no safe wrapper"
)]

use std::{
    ffi::c_long,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::{
    libc,
    unistd::{ForkResult, Pid, fork},
};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{Interest, unix::AsyncFd};

use super::device::ebpf::Instruction;

/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const PROGRAM_TYPE: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const ATTACH_TYPE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: programs of a parent and of its children are all asked.
const ALLOW_MULTI: u32 = 1 << 1;
/// `BPF_F_REPLACE`, from Linux 5.6 on.
const REPLACE: u32 = 1 << 2;
/// How many programs a cgroup can have at most (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;

/// The commands of bpf(2) that are used here.
#[derive(Debug, Clone, Copy)]
enum Command {
    Load = 5,
    Attach = 8,
    Detach = 9,
    Open = 13,
    Query = 16,
}

/// What `BPF_PROG_LOAD` reads of `union bpf_attr`: its first members.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    n_instructions: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// What `BPF_PROG_ATTACH` and `BPF_PROG_DETACH` read.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// What `BPF_PROG_QUERY` reads and writes.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    n_ids: u32,
    padding: u32,
}

/// What `BPF_PROG_GET_FD_BY_ID` reads.
#[repr(C)]
#[derive(Default)]
struct Open {
    id: u32,
    next: u32,
    flags: u32,
}

/// Calls bpf(2). `T` is one of the structures above.
fn bpf<T>(command: Command, attribute: &mut T) -> io::Result<c_long> {
    // SAFETY: the attribute is a live, exclusively borrowed structure of the size that is passed, laid out as
    // the command's part of `union bpf_attr` with all bytes initialised. The pointers within it come from
    // slices that its makers below keep alive over this call, together with their true lengths.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attribute),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A descriptor that bpf(2) has just made.
fn owned(descriptor: c_long) -> OwnedFd {
    // SAFETY: the kernel has made the descriptor for this call; nothing else knows its number.
    unsafe { OwnedFd::from_raw_fd(descriptor as i32) }
}

/// Loads a program that answers whether a cgroup may use a device.
///
/// # Errors
/// `EPERM` without `CAP_BPF`; `EINVAL` or `EACCES` where the kernel refuses the program.
///
/// Source: bpf(2); `include/uapi/linux/bpf.h` of Linux 6.1.
pub(super) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind: PROGRAM_TYPE,
        n_instructions: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name: *b"opr_devices\0\0\0\0\0",
        ..Load::default()
    };
    bpf(Command::Load, &mut load).map(owned)
}

/// Attaches a device program to a cgroup of version 2, in the place of `replaced` where there is one.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` and `CAP_BPF`; `EINVAL` where `cgroup` is none.
pub(super) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attach = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_TYPE,
        flags: ALLOW_MULTI,
        ..Attach::default()
    };
    if let Some(replaced) = replaced {
        attach.flags |= REPLACE;
        attach.replaced = replaced.as_raw_fd() as u32;
    }
    bpf(Command::Attach, &mut attach).map(drop)
}

/// Takes a device program off a cgroup.
///
/// # Errors
/// `ENOENT` where it is not attached.
pub(super) fn detach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut detach = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_TYPE,
        ..Attach::default()
    };
    bpf(Command::Detach, &mut detach).map(drop)
}

/// The device programs that are attached to this very cgroup, in their order. Programs that a security module
/// hides from this process are left out: they can only refuse more.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`.
pub(super) fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut query = Query {
        target: cgroup.as_raw_fd() as u32,
        kind: ATTACH_TYPE,
        ids: ids.as_mut_ptr() as u64,
        n_ids: ids.len() as u32,
        ..Query::default()
    };
    bpf(Command::Query, &mut query)?;
    let n_ids = query.n_ids as usize;
    ids.iter()
        .take(n_ids)
        .filter_map(|&id| {
            let mut open = Open {
                id,
                ..Open::default()
            };
            match bpf(Command::Open, &mut open) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
                // It was taken off since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                opened => Some(opened.map(owned)),
            }
        })
        .collect()
}

/// Has tokio tell when a descriptor is readable.
///
/// # Errors
/// The kernel watches no more descriptors, or not this kind.
pub(super) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is an open descriptor, always the same; the `AsyncFd` owns it and hands out no `&mut`
    // by which it could be replaced.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// A child process that does nothing, so that a cgroup has a member. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Idle {
    pid: Pid,
    /// The child ends when it reads the end of this pipe, also where this process is killed.
    _alive: OwnedFd,
}

impl Idle {
    /// Forks the child.
    ///
    /// # Errors
    /// The kernel has no process or descriptor left.
    ///
    /// Source: fork(2), signal-safety(7).
    pub(super) fn start() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: the child calls only raw system calls that are async-signal-safe, touches no memory but its
        // own stack, and never returns.
        match unsafe { fork() }? {
            ForkResult::Child => wait_for_end(read.as_raw_fd()),
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                _alive: write,
            }),
        }
    }

    /// As this process sees it.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }
}

/// The life of an [`Idle`] child: all descriptors but `alive` are closed, which then tells the end.
fn wait_for_end(alive: i32) -> ! {
    let mut byte = 0u8;
    // SAFETY: prctl takes integers here and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0, 0) };
    // SAFETY: dup2 takes two integers; this process has no other thread that could use descriptor 0.
    unsafe { libc::dup2(alive, 0) };
    // SAFETY: close_range takes integers; what it closes belongs to this process alone, which uses only 0.
    unsafe { libc::syscall(libc::SYS_close_range, 1u32, u32::MAX, 0u32) };
    // SAFETY: the buffer is one live byte, as its length says.
    while unsafe { libc::read(0, std::ptr::from_mut(&mut byte).cast(), 1) } > 0 {}
    // SAFETY: _exit runs nothing of this process's libraries.
    unsafe { libc::_exit(0) }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // Both fail only where the child has ended and was waited for by somebody else.
        let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }
}
