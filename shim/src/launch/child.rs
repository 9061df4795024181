//! What a container's process does between its birth and its program. It has one thread, and all that it needs
//! was decided before: it makes system calls, and tells the first that fails.

use std::{
    convert::Infallible,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::libc;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    channel,
    failure::{Failure, Step},
    hooks, tree,
};
use crate::{
    plan::{
        Birth, Completion, ContainerPlan, ExecPlan, HookPlan, NamespacePlan, Plan, Propagation,
    },
    sys::{self, MountAttributes, attribute},
};

mod console;
mod copy_up;
mod devices;
mod finish;
mod mounts;
mod root;

use root::Root;

/// The namespaces that the process makes itself: that of its cgroup, once it is in there; that of IPC, once it is root,
/// who owns what is in it; and that of the network, which takes the kernel longer than all the rest of a birth. The
/// process makes it while the shim goes on; the spawner would keep others waiting, and the shim where there is no
/// other processor.
pub(super) const OWN: i32 = libc::CLONE_NEWCGROUP | SOON;
/// Those that it makes without a plan.
const SOON: i32 = libc::CLONE_NEWIPC | libc::CLONE_NEWNET;

/// What a process tells the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// Its mounts are made: the host's hooks may run. Waits for an [`Order`].
    Mounted,
    /// It is complete, with its terminal's master side as descriptor where it has one. Waits for an [`Order`].
    Created,
    Failed(Failure),
}

/// Go on; with the container's state, as hooks take it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) state: String,
}

/// The descriptors of a plan.
#[derive(Debug)]
pub(super) struct Held(Vec<OwnedFd>);

impl Held {
    pub(super) fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors)
    }

    pub(super) fn get(&self, at: usize) -> BorrowedFd<'_> {
        self.0[at].as_fd()
    }
}

/// Where a process talks with the shim.
struct Control(UnixStream);

impl Control {
    fn report(&self, report: &Report, descriptors: &[BorrowedFd]) -> io::Result<()> {
        channel::send(&self.0, report, descriptors)
    }

    /// Waits for the word to go on.
    fn wait(&self) -> Result<Order, Failure> {
        let (order, _) = self.receive("read the order")?;
        Ok(order)
    }

    /// The shim's end is the process's too.
    fn receive<T: DeserializeOwned>(&self, step: &'static str) -> Result<(T, Held), Failure> {
        match channel::receive(&self.0).step(step)? {
            Some((message, descriptors)) => Ok((message, Held::new(descriptors))),
            None => sys::exit_now(1),
        }
    }

    /// Tells why there will be no program, and ends.
    fn fail(&self, failure: Failure) -> ! {
        let _ = self.report(&Report::Failed(failure), &[]);
        sys::exit_now(1)
    }
}

/// A process that has just been made. `mapped` has a byte once the ids of its user namespace are set.
pub(super) fn live(birth: &Birth, held: Held, mapped: Option<io::PipeReader>) -> ! {
    let Ok(control) = held.get(birth.control).try_clone_to_owned() else {
        sys::exit_now(1)
    };
    drop(held);
    let control = Control(control.into());
    let run = || {
        prepare(&birth.namespaces, mapped)?;
        let (plan, held) = control.receive("read the plan")?;
        match plan {
            Plan::Container(plan) => Child {
                plan: &plan,
                namespaces: &birth.namespaces,
                held,
                control: &control,
            }
            .run(),
            Plan::Exec(plan) => exec(&plan, &held, &control),
        }
    };
    match run() {
        Err(failure) => control.fail(failure),
        Ok(never) => match never {},
    }
}

/// What needs no plan: it is done while the shim is still making one.
fn prepare(namespaces: &NamespacePlan, mapped: Option<io::PipeReader>) -> Result<(), Failure> {
    if let Some(mut mapped) = mapped
        && mapped.read_exact(&mut [0]).is_err()
    {
        sys::exit_now(1);
    }
    if namespaces.has(libc::CLONE_NEWUSER) {
        become_root()?;
    }
    if namespaces.new & SOON != 0 {
        sys::unshare(namespaces.new & SOON).step("make namespaces of IPC and of the network")?;
    }
    if namespaces.new & libc::CLONE_NEWNET != 0 {
        sys::loopback_up().step("switch the loopback interface on")?;
    }
    Ok(())
}

/// A further process of a container, in its namespaces already.
fn exec(plan: &ExecPlan, held: &Held, control: &Control) -> Result<Infallible, Failure> {
    enter_cgroups(&plan.tasks, held)?;
    begin_session()?;
    let console = match plan.streams {
        Some(_) => None,
        None => Some(console::Console::open(
            &Root::current()?,
            plan.process.console_size,
        )?),
    };
    finish::finish(
        &plan.process,
        held,
        finish::Surroundings {
            control,
            streams: plan.streams,
            console,
            start_hooks: &[],
        },
    )
}

struct Child<'a> {
    plan: &'a ContainerPlan,
    namespaces: &'a NamespacePlan,
    held: Held,
    control: &'a Control,
}

impl Child<'_> {
    fn run(&self) -> Result<Infallible, Failure> {
        let plan = self.plan;
        enter_cgroups(&plan.tasks, &self.held)?;
        if self.namespaces.new & libc::CLONE_NEWCGROUP != 0 {
            sys::unshare(libc::CLONE_NEWCGROUP).step("make a cgroup namespace")?;
        }
        begin_session()?;
        rustix::process::umask(rustix::fs::Mode::empty());
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .step("keep mounts to the container")?;
        let made = mounts::make(&plan.mounts)?;
        self.name_host()?;
        let (completion, held) = self.control.receive("read the rest of the plan")?;
        self.complete(&completion, &held, made)
    }

    fn complete(
        &self,
        completion: &Completion,
        held: &Held,
        made: Vec<Option<OwnedFd>>,
    ) -> Result<Infallible, Failure> {
        let plan = self.plan;
        if let Some(name) = &completion.keyring {
            join_keyring(name)?;
        }
        let is_terminal = completion.streams.is_none();
        let console = self.make_root(held.get(completion.root), made, is_terminal)?;
        finish::finish(
            &plan.process,
            held,
            finish::Surroundings {
                control: self.control,
                streams: completion.streams,
                console,
                start_hooks: &plan.start_hooks,
            },
        )
    }

    fn name_host(&self) -> Result<(), Failure> {
        let plan = self.plan;
        for (name, value, set) in [
            (
                "set the hostname",
                &plan.hostname,
                rustix::system::sethostname as fn(&[u8]) -> _,
            ),
            (
                "set the domainname",
                &plan.domainname,
                rustix::system::setdomainname,
            ),
        ] {
            if let Some(value) = value {
                set(value.as_bytes()).step(name)?;
            }
        }
        Ok(())
    }

    /// From the host's file systems to the container's.
    fn make_root(
        &self,
        tree: BorrowedFd,
        made: Vec<Option<OwnedFd>>,
        is_terminal: bool,
    ) -> Result<Option<console::Console>, Failure> {
        let plan = self.plan;
        let proc = root::open_proc()?;
        let host = root::open_folder("/").step("open the host's root")?;
        // The new root hides the old one from nobody who has it as root already, as this process has.
        tree::attach(tree, host.as_fd()).step("mount the root file system")?;
        rustix::process::fchdir(tree).step("enter the root file system")?;
        let root = Root::new(tree)?;
        for (mount, made) in plan.mounts.iter().zip(made) {
            mounts::mount(&root, mount, made, &self.held)?;
        }
        if let Some(all) = &plan.devices {
            devices::make(&root, all, self.namespaces.has(libc::CLONE_NEWUSER))?;
        }
        let console = is_terminal.then(|| self.make_console(&root)).transpose()?;
        root.make_folder(plan.process.cwd.to_str().unwrap_or("/").as_ref())?;
        if plan.has_hooks {
            self.control
                .report(&Report::Mounted, &[])
                .step("report to the shim")?;
            let order = self.control.wait()?;
            run_hooks(&plan.create_hooks, "createContainer", &order.state)?;
        }
        for (name, value) in &plan.sysctls {
            root::write_sysctl(proc.as_fd(), name, value)?;
        }
        mounts::close_dev(&root, &plan.mounts)?;
        mounts::protect(&root, &plan.read_only, &plan.masked)?;
        if plan.root.is_read_only {
            let read_only = MountAttributes {
                set: attribute::RDONLY,
                ..MountAttributes::default()
            };
            sys::mount_setattr(tree, read_only, false, None).step("make the root read-only")?;
        }
        drop(root);
        pivot(plan.root.propagation)?;
        Ok(console)
    }

    fn make_console(&self, root: &Root) -> Result<console::Console, Failure> {
        let console = console::Console::open(root, self.plan.process.console_size)?;
        console.mount(root)?;
        Ok(console)
    }
}

/// Makes the current folder the root, and forgets the host's.
fn pivot(propagation: Option<Propagation>) -> Result<(), Failure> {
    rustix::process::pivot_root(".", ".").step("change the root")?;
    unmount(".", UnmountFlags::DETACH).step("leave the host's root")?;
    rustix::process::chdir("/").step("enter the root")?;
    if let Some(Propagation { kind, .. }) = propagation {
        let root = root::open_folder("/").step("open the root")?;
        let attributes = MountAttributes {
            propagation: kind,
            ..MountAttributes::default()
        };
        sys::mount_setattr(root.as_fd(), attributes, true, None)
            .step("set the propagation of the root")?;
    }
    Ok(())
}

/// A number that the kernel takes for the writer's own.
fn enter_cgroups(tasks: &[usize], held: &Held) -> Result<(), Failure> {
    for &tasks in tasks {
        rustix::io::write(held.get(tasks), b"0").step("enter a cgroup")?;
    }
    Ok(())
}

/// The root of the user namespace; the ids of the host mean nobody there.
fn become_root() -> Result<(), Failure> {
    use rustix::process::{Gid, Uid};
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("become the namespace's root group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("become the namespace's root")
}

fn begin_session() -> Result<(), Failure> {
    rustix::process::setsid().step("begin a session").map(drop)
}

fn join_keyring(name: &std::ffi::CStr) -> Result<(), Failure> {
    match sys::join_session_keyring(name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        joined => joined.step("make a session keyring"),
    }
}

fn run_hooks(all: &[HookPlan], kind: &str, state: &str) -> Result<(), Failure> {
    for (at, hook) in all.iter().enumerate() {
        hooks::run(hook, state)
            .step_with(|| format!("run {kind} hook {at}, {}", hook.path.display()))?;
    }
    Ok(())
}
