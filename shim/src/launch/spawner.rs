//! The process that makes all others. It has one thread and little memory, so that a copy of it is cheap and
//! holds no other thread's lock; it ends with the shim.
//!
//! ```text
//! shim ──▶ spawner ──clone3──▶ the process, a child of the shim, which gets its plan from there
//!             └──clone3──▶ passer ──clone3──▶ the same, where namespaces are joined on the way
//! ```

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::libc;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{
    channel,
    child::{self, Held},
    failure::{Failure, Step},
};
use crate::{
    plan::{Birth, IdMaps, NamespacePlan},
    sys::{self, Side, as_flags},
};

/// What the shim asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Process(Birth),
    /// A user namespace without a process.
    UserNamespace(IdMaps),
}

/// What it gets, with a descriptor: of the process, or of the namespace.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// Numbers of the process and of the passer, which has ended or is about to.
    Process {
        pid: u32,
        passer: Option<u32>,
    },
    UserNamespace,
    Failed(Failure),
}

/// The shim's way to the spawner.
#[derive(Debug)]
pub(super) struct Spawner {
    requests: UnixStream,
    bell: OwnedFd,
    process: OwnedFd,
}

impl Spawner {
    /// The process, for who waits for its end.
    pub(super) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Sends a request. The reply goes to the first descriptor.
    ///
    /// What is written to a socket is, for the kernel, a word to run its reader on the writer's processor, which goes
    /// on with its own work here; the bell wakes the spawner on another. It comes after the request, which the socket
    /// takes whole: its longest part, maps of ids, is bounded by the plan.
    pub(super) fn ask(&self, request: &Request, descriptors: &[BorrowedFd]) -> io::Result<()> {
        channel::send(&self.requests, request, descriptors)?;
        rustix::io::write(&self.bell, &1_u64.to_ne_bytes())?;
        Ok(())
    }
}

/// Forks the spawner.
pub(super) fn fork() -> io::Result<Spawner> {
    let (ours, its) = UnixStream::pair()?;
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?;
    match sys::fork_alone()? {
        Side::Parent { pidfd, .. } => Ok(Spawner {
            requests: ours,
            bell,
            process: pidfd,
        }),
        Side::Child => {
            // What outlives the shim here, as its listening socket would, looks as if the shim were there.
            if sys::close_all_but([its.as_fd(), bell.as_fd()]).is_err() {
                sys::exit_now(1);
            }
            let _ = rustix::thread::set_name(c"opr-spawner");
            // Nor its children, until they execute their programs: whoever shares a container's namespaces
            // reads and traces none of them.
            let hidden = rustix::process::DumpableBehavior::NotDumpable;
            let _ = rustix::process::set_dumpable_behavior(hidden);
            serve(&its, bell.as_fd());
            sys::exit_now(0)
        }
    }
}

/// Carries out requests until the shim is gone. The first descriptor of each is where its reply goes.
fn serve(shim: &UnixStream, bell: BorrowedFd) {
    while is_asked(shim, bell)
        && let Ok(Some((request, mut descriptors))) = channel::receive::<Request>(shim)
    {
        if descriptors.is_empty() {
            return;
        }
        let asker = UnixStream::from(descriptors.remove(0));
        let (reply, descriptor) = match carry_out(request, descriptors) {
            Ok((reply, descriptor)) => (reply, Some(descriptor)),
            Err(failure) => (Reply::Failed(failure), None),
        };
        let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
        // Whoever asked may be gone; the process ends then, for want of a plan.
        let _ = channel::send(&asker, &reply, &descriptors);
    }
}

/// Waits for the bell, or for the end of the shim, which is no request.
fn is_asked(shim: &UnixStream, bell: BorrowedFd) -> bool {
    let mut both = [
        PollFd::new(&bell, PollFlags::IN),
        PollFd::new(shim, PollFlags::empty()),
    ];
    loop {
        match poll(&mut both, None) {
            Err(Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) if both[0].revents().contains(PollFlags::IN) => {
                return rustix::io::read(bell, &mut [0; 8]).is_ok();
            }
            Ok(_) => return false,
        }
    }
}

fn carry_out(request: Request, descriptors: Vec<OwnedFd>) -> Result<(Reply, OwnedFd), Failure> {
    let birth = match request {
        Request::Process(birth) => birth,
        Request::UserNamespace(maps) => return user_namespace(&maps),
    };
    let held = Held::new(descriptors);
    let namespaces = &birth.namespaces;
    let flags = libc::CLONE_PARENT | namespaces.new & !child::OWN;
    if namespaces.joined.is_empty() && namespaces.time_offsets.is_empty() {
        return bear(&birth, held, flags, None);
    }
    pass(move || {
        if birth.namespaces.has(libc::CLONE_NEWUSER) {
            raise_limits(0, &birth)?;
        }
        join(&birth.namespaces, &held)?;
        let passer = Some(std::process::id());
        bear(&birth, held, flags & !CLONE_NEWTIME, passer)
    })
}

const CLONE_NEWTIME: i32 = 0x80;

/// Makes the process, which goes on in `child`.
fn bear(
    birth: &Birth,
    held: Held,
    flags: i32,
    passer: Option<u32>,
) -> Result<(Reply, OwnedFd), Failure> {
    let (mapped, go) = io::pipe().step("make a pipe")?;
    let cgroup = birth.cgroup.map(|at| held.get(at));
    let id_maps = birth.namespaces.id_maps.as_ref();
    match alone(flags, cgroup).step("make a process in its namespaces")? {
        Side::Child => {
            drop(go);
            child::live(birth, held, id_maps.is_some().then_some(mapped))
        }
        Side::Parent { pid, pidfd } => {
            if let Some(maps) = id_maps {
                // Without a word the process ends by itself.
                raise_limits(pid, birth)?;
                write_maps(pid, maps)?;
                (&go).write_all(&[1]).step("tell a process of its ids")?;
            }
            Ok((Reply::Process { pid, passer }, pidfd))
        }
    }
}

/// Hard limits are raised by who has the host's rights; the process itself lowers them to what they are to be
/// in the end.
fn raise_limits(pid: u32, birth: &Birth) -> Result<(), Failure> {
    for &(resource, _, hard) in &birth.rlimits {
        sys::raise_rlimit(pid, resource, hard)
            .step_with(|| format!("raise the limit {resource}"))?;
    }
    Ok(())
}

/// Runs `work` in a process of its own, a child of the shim: namespaces that it joins are not the spawner's.
fn pass(
    work: impl FnOnce() -> Result<(Reply, OwnedFd), Failure>,
) -> Result<(Reply, OwnedFd), Failure> {
    let (ours, its) = UnixStream::pair().step("make a socket")?;
    let side = alone(libc::CLONE_PARENT, None).step("make a process that joins namespaces")?;
    if let Side::Child = side {
        drop(ours);
        let _ = match work() {
            Ok((reply, descriptor)) => channel::send(&its, &reply, &[descriptor.as_fd()]),
            Err(failure) => channel::send(&its, &Reply::Failed(failure), &[]),
        };
        sys::exit_now(0);
    }
    drop((its, work));
    let received = channel::receive::<Reply>(&ours).step("hear of a process")?;
    match received {
        Some((Reply::Failed(failure), _)) => Err(failure),
        Some((reply, mut descriptors)) if descriptors.len() == 1 => {
            Ok((reply, descriptors.remove(0)))
        }
        _ => Err(io::Error::other("it ended without a word")).step("hear of a process"),
    }
}

/// Joins what is the host's to give: the user namespace is the last, since it takes the rights over others.
fn join(plan: &NamespacePlan, held: &Held) -> Result<(), Failure> {
    if plan.new & CLONE_NEWTIME != 0 {
        sys::unshare(CLONE_NEWTIME).step("make a time namespace")?;
        std::fs::write("/proc/self/timens_offsets", &plan.time_offsets)
            .step("set the offsets of clocks")?;
    }
    for joined in &plan.joined {
        sys::setns(held.get(joined.descriptor), joined.kind)
            .step_with(|| format!("join namespaces of kind {:#x}", joined.kind))?;
    }
    Ok(())
}

fn write_maps(pid: u32, maps: &IdMaps) -> Result<(), Failure> {
    for (file, text) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        std::fs::write(format!("/proc/{pid}/{file}"), text)
            .step_with(|| format!("map ids in {file}"))?;
    }
    Ok(())
}

fn user_namespace(maps: &IdMaps) -> Result<(Reply, OwnedFd), Failure> {
    let (wait, go) = io::pipe().step("make a pipe")?;
    match alone(libc::CLONE_NEWUSER, None).step("make a user namespace")? {
        Side::Child => {
            drop(go);
            let _ = (&wait).read(&mut [0]);
            sys::exit_now(0)
        }
        Side::Parent { pid, pidfd } => {
            let made = write_maps(pid, maps).and_then(|()| {
                File::open(format!("/proc/{pid}/ns/user")).step("open a user namespace")
            });
            drop(go);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            Ok((Reply::UserNamespace, made?.into()))
        }
    }
}

/// A new process; this one has a single thread.
fn alone(flags: i32, cgroup: Option<BorrowedFd>) -> io::Result<Side> {
    sys::clone_alone(as_flags(flags), cgroup)
}
