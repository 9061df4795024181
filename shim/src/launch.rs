//! Makes the processes of containers: a request becomes a plan, descriptors, and a child of this process.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use oci_spec::runtime::{Process, Spec};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::{cgroup::Entry, plan::HookPlan};

pub use crate::plan::SpecError;

mod channel;
mod child;
mod failure;
mod hooks;
mod request;
mod spawner;
pub(crate) mod tree;

use child::{Order, Report};
use request::{Bearing, Planned, Surroundings};
use spawner::{Reply, Request, Spawner};

/// Makes processes. Cheap to copy. Requests go to the spawner one after another; each has its reply to itself.
#[derive(Debug, Clone)]
pub struct Launcher(Arc<Mutex<Spawner>>);

/// A request whose reply is still to come.
struct Asked(UnixStream);

/// A container to be made, as far as its bundle tells it.
#[derive(Debug)]
pub struct CreateRequest {
    /// The container's name.
    pub id: String,
    /// The OCI bundle.
    pub bundle: PathBuf,
    /// `config.json`.
    pub spec: Spec,
    /// The folder of version 2 that the main process is born into.
    pub birthplace: Option<OwnedFd>,
}

/// What a container needs beside its bundle.
#[derive(Debug)]
pub struct CompleteRequest {
    /// The root file system as containerd tells it; empty where it is in the bundle already.
    pub rootfs: Vec<RootfsMount>,
    /// What the main process reads and writes.
    pub stdio: ProcessStdio,
    /// Keeps the session keyring of this process (runc's `no_new_keyring`).
    pub no_new_keyring: bool,
}

/// A further process in a container.
#[derive(Debug)]
pub struct ExecRequest {
    /// The container's name.
    pub id: String,
    /// The OCI bundle.
    pub bundle: PathBuf,
    /// `config.json` of the container.
    pub spec: Spec,
    /// What is to be run.
    pub process: Process,
    /// The container's main process.
    pub init: OwnedFd,
    /// What the process reads and writes.
    pub stdio: ProcessStdio,
    /// The folder of version 2 that the process is born into.
    pub birthplace: Option<OwnedFd>,
    /// The cgroup that it enters then.
    pub cgroup: Entry,
}

/// One of containerd's `types.Mount`.
#[derive(Debug, Clone)]
pub struct RootfsMount {
    /// As in `overlay`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Beneath the root; mostly empty.
    pub target: String,
    /// As in fstab(5).
    pub options: Vec<String>,
}

/// What a process reads and writes.
#[derive(Debug)]
pub enum ProcessStdio {
    /// Standard input, output and error.
    Streams([OwnedFd; 3]),
    /// A terminal that is made in the container.
    Terminal,
}

/// A container whose process waits for the rest of its plan. Dropping it ends the process, and blocks until then.
#[derive(Debug)]
pub struct Prepared {
    pid: u32,
    newborn: Option<Newborn>,
}

/// A process that has got a plan.
#[derive(Debug)]
struct Newborn {
    pid: u32,
    pidfd: OwnedFd,
    control: UnixStream,
    around: Surroundings,
}

/// A process that waits before its program.
#[derive(Debug)]
pub struct Created {
    /// As this process sees it.
    pub pid: u32,
    /// The process: a child of this one, which has to wait for it (waitid(2) with `P_PIDFD`).
    pub pidfd: OwnedFd,
    /// The terminal's master side.
    pub console: Option<OwnedFd>,
    /// Keeps a new container's root file system mounted after the process has ended.
    pub root: Option<OwnedFd>,
    /// Lets it go on.
    pub gate: Gate,
}

/// Holds a process back. Dropping it ends the process.
#[derive(Debug)]
pub struct Gate {
    control: UnixStream,
    state: String,
    poststart: Vec<HookPlan>,
}

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The spec asks for what is unknown or impossible.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The program cannot be executed.
    #[error("exec: {program:?}: {reason}")]
    Program {
        /// As the spec has it.
        program: String,
        /// As in "executable file not found in $PATH".
        reason: String,
    },
    /// The kernel refused a step.
    #[error("{step}")]
    Step {
        /// As in "mount proc at /proc".
        step: String,
        /// Why.
        source: io::Error,
    },
}

impl Launcher {
    /// Forks the process that makes all others. Call it before this process has a second thread.
    ///
    /// # Errors
    /// The kernel has no process or descriptor left.
    pub fn start() -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(spawner::fork()?))))
    }

    /// The process that makes all others, as a descriptor that is readable once it has ended: none is made then.
    ///
    /// # Errors
    /// This process has no descriptor left.
    pub fn spawner(&self) -> io::Result<OwnedFd> {
        self.lock().process().try_clone_to_owned()
    }

    /// Makes a container as far as its bundle tells it. While its main process is born, `complete` makes the rest of
    /// its cgroup. Blocks.
    ///
    /// # Errors
    /// Those of `complete`; see [`LaunchError`]. Nothing is left of a process that failed.
    pub fn prepare<E: From<LaunchError>>(
        &self,
        mut request: CreateRequest,
        complete: impl FnOnce() -> Result<Entry, E>,
    ) -> Result<Prepared, E> {
        let bearing = request::container_birth(&mut request)?;
        let newborn = self.make(bearing, |bearing| -> Result<_, E> {
            Ok(request::container(request, complete()?, bearing, self)?)
        })?;
        Ok(Prepared {
            pid: newborn.pid,
            newborn: Some(newborn),
        })
    }

    /// Makes a further process in a container; it waits before its program. Blocks.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn exec(&self, mut request: ExecRequest) -> Result<Created, LaunchError> {
        let bearing = request::exec_birth(&mut request)?;
        let newborn = self.make(bearing, |_| request::exec(request))?;
        newborn.finish(|_| Ok(None))
    }

    /// The process is born while its plan is made.
    fn make<E: From<LaunchError>>(
        &self,
        bearing: Bearing,
        plan: impl FnOnce(&Bearing) -> Result<Planned, E>,
    ) -> Result<Newborn, E> {
        let born = self.bear(&bearing)?;
        let planned = plan(&bearing);
        // What the process has of them is its own: here they would keep it from seeing the end of others.
        let Bearing {
            control,
            descriptors,
            ..
        } = bearing;
        drop(descriptors);
        let (pid, pidfd) = born.process()?;
        let handed = planned.and_then(|planned| {
            tell(&control, &planned.plan, &planned.descriptors)?;
            Ok(planned.process)
        });
        match handed {
            Ok(around) => Ok(Newborn {
                pid,
                pidfd,
                control,
                around,
            }),
            Err(error) => {
                end(&pidfd);
                Err(error)
            }
        }
    }

    fn bear(&self, bearing: &Bearing) -> Result<Asked, LaunchError> {
        let descriptors: Vec<_> = bearing.descriptors.iter().map(AsFd::as_fd).collect();
        self.ask(&Request::Process(bearing.birth.clone()), &descriptors)
    }

    /// A user namespace with these ids, for mounts.
    fn user_namespace(&self, maps: crate::plan::IdMaps) -> Result<OwnedFd, LaunchError> {
        match self.ask(&Request::UserNamespace(maps), &[])?.reply()? {
            (Reply::UserNamespace, Some(namespace)) => Ok(namespace),
            (Reply::Failed(failure), _) => Err(failure.into()),
            _ => Err(lost()),
        }
    }

    fn ask(&self, request: &Request, descriptors: &[BorrowedFd]) -> Result<Asked, LaunchError> {
        let (ours, its) = UnixStream::pair().map_err(step("make a socket"))?;
        let descriptors = [&[its.as_fd()], descriptors].concat();
        let asked = self.lock().ask(request, &descriptors);
        asked.map_err(step("ask the spawner"))?;
        Ok(Asked(ours))
    }

    fn lock(&self) -> MutexGuard<'_, Spawner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    fn reply(self) -> Result<(Reply, Option<OwnedFd>), LaunchError> {
        let received = channel::receive(&self.0).map_err(step("hear from the spawner"))?;
        let (reply, mut descriptors) = received.ok_or_else(lost)?;
        Ok((reply, descriptors.pop()))
    }

    fn process(self) -> Result<(u32, OwnedFd), LaunchError> {
        match self.reply()? {
            (Reply::Process { pid, passer }, Some(pidfd)) => {
                let reaped = passer.map_or(Ok(()), reap);
                reaped.map_err(step("wait for a passer"))?;
                Ok((pid, pidfd))
            }
            (Reply::Failed(failure), _) => Err(failure.into()),
            _ => Err(lost()),
        }
    }
}

impl Gate {
    /// Lets the process execute its program; answers when it does.
    ///
    /// # Errors
    /// [`LaunchError::Program`] where it cannot; the process has ended then.
    pub async fn open(self) -> Result<(), LaunchError> {
        let Self {
            control,
            state,
            poststart,
        } = self;
        let order = Order { state };
        channel::send(&control, &order, &[]).map_err(step("start the process"))?;
        // The program's execution closes the process's end.
        match readable(control)
            .await
            .and_then(|control| channel::receive(&control))
        {
            Ok(None) => {}
            Ok(Some((Report::Failed(failure), _))) => return Err(failure.into()),
            Ok(Some(_)) | Err(_) => return Err(lost()),
        }
        if poststart.is_empty() {
            return Ok(());
        }
        let state = order.state.replacen("created", "running", 1);
        blocking(move || {
            for hook in &poststart {
                // The program runs by now: nothing is to be undone.
                if let Err(error) = hooks::run(hook, &state) {
                    log::warn!("poststart hook {}: {error}", hook.path.display());
                }
            }
            Ok(())
        })
        .await
    }
}

/// Waits until a message or the end can be received; what is begun is received by a moment's blocking.
async fn readable(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    stream.readable().await?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Runs the hooks that follow the end of a container, all of them.
pub async fn poststop(id: &str, bundle: &std::path::Path, spec: &Spec) {
    let Ok(process) = Surroundings::new(id, bundle, spec) else {
        return;
    };
    let run = move || {
        process.run_poststop();
        Ok(())
    };
    let _ = blocking(run).await;
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LaunchError> + Send + 'static,
) -> Result<T, LaunchError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(step("make a process")(io::Error::other(error))))
}

fn step(step: impl Into<String>) -> impl FnOnce(io::Error) -> LaunchError {
    let step = step.into();
    move |source| LaunchError::Step { step, source }
}

fn lost() -> LaunchError {
    step("make a process")(io::Error::other("it ended without a word"))
}

/// Gives a process what it waits for. One that has ended has left a word why, which is read afterwards.
fn tell(
    control: &UnixStream,
    message: &impl serde::Serialize,
    descriptors: &[OwnedFd],
) -> Result<(), LaunchError> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    match channel::send(control, message, &borrowed) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(step("give the process its plan")(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn end(pidfd: &OwnedFd) {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

fn reap(pid: u32) -> io::Result<()> {
    let pid =
        rustix::process::Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidData)?;
    match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED) {
        // Whoever waits for orphans has met it before.
        Err(rustix::io::Errno::CHILD) | Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Prepared {
    /// Completes the container; its process waits before its program then. Blocks.
    ///
    /// # Errors
    /// See [`LaunchError`]. Nothing is left of a process that failed.
    pub fn complete(mut self, request: CompleteRequest) -> Result<Created, LaunchError> {
        let newborn = self.newborn.take().ok_or_else(lost)?;
        newborn.finish(|newborn| {
            let (completion, mut descriptors) = request::completion(request, &newborn.around)?;
            tell(&newborn.control, &completion, &descriptors)?;
            Ok(Some(descriptors.swap_remove(completion.root)))
        })
    }

    /// The main process, as this process sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(newborn) = &self.newborn {
            end(&newborn.pidfd);
        }
    }
}

impl Newborn {
    /// Gives the process what is left to give, and goes with it until it waits before its program.
    fn finish(
        self,
        give: impl FnOnce(&Self) -> Result<Option<OwnedFd>, LaunchError>,
    ) -> Result<Created, LaunchError> {
        let made = give(&self)
            .and_then(|root| Ok((root, self.around.see_to(self.pid, &self.control)?)))
            .inspect_err(|_| {
                self.around.run_poststop();
                end(&self.pidfd);
            });
        let (root, console) = made?;
        let Self {
            pid,
            pidfd,
            control,
            around,
        } = self;
        Ok(Created {
            pid,
            pidfd,
            console,
            root,
            gate: Gate {
                control,
                state: around.state(pid, "created"),
                poststart: around.poststart,
            },
        })
    }
}

impl Surroundings {
    /// Goes with a process until it waits before its program; answers its terminal's master side.
    fn see_to(&self, pid: u32, control: &UnixStream) -> Result<Option<OwnedFd>, LaunchError> {
        loop {
            let received = channel::receive(control).map_err(step("hear from the process"))?;
            let (report, mut descriptors) = received.ok_or_else(lost)?;
            match report {
                Report::Failed(failure) => return Err(failure.into()),
                Report::Mounted => {
                    let state = self.state(pid, "creating");
                    for hook in &self.before_pivot {
                        let named = format!("run the hook {}", hook.path.display());
                        hooks::run(hook, &state).map_err(step(named))?;
                    }
                    channel::send(control, &Order { state }, &[])
                        .map_err(step("answer the process"))?;
                }
                Report::Created => {
                    self.adjust(pid)?;
                    return Ok(descriptors.pop());
                }
            }
        }
    }

    /// What is to be cleaned up is cleaned up, whatever one of them says.
    fn run_poststop(&self) {
        let state = self.state(0, "stopped");
        for hook in &self.poststop {
            if let Err(error) = hooks::run(hook, &state) {
                log::warn!("poststop hook {}: {error}", hook.path.display());
            }
        }
    }

    /// What needs the host's rights.
    fn adjust(&self, pid: u32) -> Result<(), LaunchError> {
        if let Some(adjustment) = self.oom_score_adj {
            std::fs::write(format!("/proc/{pid}/oom_score_adj"), adjustment.to_string())
                .map_err(step("set the OOM score of the process"))?;
        }
        Ok(())
    }
}
