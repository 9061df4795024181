//! One container: operations one after another, exits as they come.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use containerd_shim::{
    event::Event,
    protos::{
        events::task::{TaskDelete, TaskExit, TaskOOM, TaskPaused, TaskResumed, TaskStart},
        protobuf::{MessageField, well_known_types::any::Any},
    },
};
use log::{debug, warn};
use oci_spec::runtime::LinuxResources;
use rustix::mount::{UnmountFlags, unmount};
use tokio::task::AbortHandle;

use super::{
    Create, Exec, Node, State, Step, TaskError, blocking,
    create::{Nature, read_spec},
    process::Process,
};
use crate::{
    cgroup::{Cgroup, CgroupError},
    events::timestamp,
    launch,
    reaper::{Child, Exit},
    stdio::StdioConfig,
};

/// How long a container that was told to end may take.
const END: Duration = Duration::from_secs(10);
const SIGKILL: i32 = nix::libc::SIGKILL;

/// A container with all its processes.
#[derive(Debug)]
pub struct Container {
    pub(super) node: Arc<Node>,
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) io_ids: (u32, u32),
    pub(super) cgroup: Arc<Cgroup>,
    pub(super) main: Arc<Process>,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    /// What changes the whole container goes one after another.
    turn: tokio::sync::Mutex<()>,
    nature: Nature,
    /// Keeps the root file system mounted until the container is deleted: the kernel writes back all of the file system
    /// that is below an overlay when the last of its mounts goes, and would let no process end before.
    root: Mutex<Option<OwnedFd>>,
    memory: Mutex<Option<AbortHandle>>,
}

/// What is known of a process.
#[derive(Debug, Clone)]
pub struct ProcessState {
    /// 0 while it has none.
    pub pid: u32,
    /// Where it is in its life.
    pub state: State,
    /// How it ended.
    pub exit: Option<Exit>,
    /// The container's bundle.
    pub bundle: PathBuf,
    /// Where its streams go.
    pub stdio: StdioConfig,
}

impl Container {
    pub(super) fn new(
        node: Arc<Node>,
        create: Create,
        main: Process,
        root: Option<OwnedFd>,
        (cgroup, nature): (Arc<Cgroup>, Nature),
    ) -> Self {
        Self {
            node,
            id: create.id,
            bundle: create.bundle,
            io_ids: create.io_ids,
            cgroup,
            main: Arc::new(main),
            execs: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            nature,
            root: Mutex::new(root),
            memory: Mutex::default(),
        }
    }

    /// Of the main process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.main.pid()
    }

    /// # Errors
    /// There is no such process.
    pub fn state(&self, exec_id: &str) -> Result<ProcessState, TaskError> {
        Ok(self.describe(&*self.process(exec_id)?))
    }

    /// Lets the main process execute its program, or makes and starts a further one; answers its pid.
    ///
    /// # Errors
    /// It was started before, or its program cannot be executed.
    pub async fn start(self: &Arc<Self>, exec_id: &str) -> Result<u32, TaskError> {
        if !exec_id.is_empty() {
            let exec = self.exec(exec_id)?;
            return self.start_exec(&exec).await;
        }
        let _turn = self.turn.lock().await;
        let _order = self.main.order.lock().await;
        let hooks = self.node.reaper.launch();
        self.main.open().await?;
        drop(hooks);
        self.publish(TaskStart {
            container_id: self.id.clone(),
            pid: self.pid(),
            ..TaskStart::default()
        });
        Ok(self.pid())
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// The container does not run, or the kernel refuses.
    pub async fn pause(&self) -> Result<(), TaskError> {
        let _turn = self.turn.lock().await;
        self.main.step(Step::Pause)?;
        if let Err(e) = self.in_cgroup("freeze", Cgroup::freeze).await {
            let thawed = self.in_cgroup("thaw", Cgroup::thaw).await;
            thawed.unwrap_or_else(|e| warn!("{}: {e}", self.id));
            self.main.step(Step::Unpaused)?;
            return Err(e);
        }
        if self.main.step(Step::Paused)? == State::Paused {
            self.publish(TaskPaused {
                container_id: self.id.clone(),
                ..TaskPaused::default()
            });
        }
        Ok(())
    }

    /// Thaws all processes.
    ///
    /// # Errors
    /// The container is not paused, or the kernel refuses.
    pub async fn resume(&self) -> Result<(), TaskError> {
        let _turn = self.turn.lock().await;
        self.main.check(Step::Resume)?;
        self.in_cgroup("thaw", Cgroup::thaw).await?;
        self.main.step(Step::Resume)?;
        self.publish(TaskResumed {
            container_id: self.id.clone(),
            ..TaskResumed::default()
        });
        Ok(())
    }

    /// Sends a signal to a process, or to all of the container.
    ///
    /// # Errors
    /// [`TaskError::Finished`] where the process has ended.
    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        let signal = i32::try_from(signal).ok().filter(|signal| *signal <= 64);
        let signal = signal.ok_or_else(|| TaskError::Invalid {
            field: "signal",
            reason: "a number from 0 to 64 is accepted".to_owned(),
        })?;
        let process = self.process(exec_id)?;
        match all && exec_id.is_empty() {
            true => self.kill_all(signal).await?,
            false => process.kill(signal)?,
        }
        // What is frozen by version 1 does not see its end.
        let is_frozen = matches!(self.main.state(), State::Pausing | State::Paused);
        if signal == SIGKILL && is_frozen {
            self.in_cgroup("thaw", Cgroup::thaw).await?;
        }
        Ok(())
    }

    /// Waits for the exit of a process.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn wait(&self, exec_id: &str) -> Result<Exit, TaskError> {
        Ok(self.process(exec_id)?.wait().await)
    }

    /// Changes the limits.
    ///
    /// # Errors
    /// The container has ended, or the cgroup refuses.
    pub async fn update(&self, resources: LinuxResources) -> Result<(), TaskError> {
        let _turn = self.turn.lock().await;
        self.main.check(Step::Update)?;
        self.in_cgroup("update", move |cgroup| cgroup.update(&resources))
            .await
    }

    /// What the container uses, in containerd's message.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub async fn stats(&self) -> Result<Any, TaskError> {
        self.in_cgroup("read", Cgroup::stats).await
    }

    /// The pids of all processes, each with the name of a further process where it has one.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub async fn pids(&self) -> Result<Vec<(u32, Option<String>)>, TaskError> {
        let pids = self.in_cgroup("read", Cgroup::pids).await?;
        let names: BTreeMap<u32, String> = self
            .lock_execs()
            .values()
            .map(|exec| (exec.process.pid(), exec.process.id.clone()))
            .collect();
        Ok(pids
            .into_iter()
            .map(|pid| (pid, names.get(&pid).cloned()))
            .collect())
    }

    /// Tells a terminal its size.
    ///
    /// # Errors
    /// There is no such process, or its terminal is gone.
    pub fn resize(&self, exec_id: &str, columns: u32, rows: u32) -> Result<(), TaskError> {
        let within = |field, value: u32| {
            u16::try_from(value).map_err(|_| TaskError::Invalid {
                field,
                reason: "at most 65,535 is accepted".to_owned(),
            })
        };
        let (columns, rows) = (within("width", columns)?, within("height", rows)?);
        let process = self.process(exec_id)?;
        process
            .resize(columns, rows)
            .map_err(|source| TaskError::Kernel {
                what: "resize the terminal",
                source,
            })
    }

    /// Ends a process's standard input once its clients have closed it.
    ///
    /// # Errors
    /// There is no such process.
    pub fn close_stdin(&self, exec_id: &str) -> Result<(), TaskError> {
        self.process(exec_id)?.close_stdin();
        Ok(())
    }

    /// Removes what is left of a container that ended or was never started.
    pub(super) async fn delete(self: &Arc<Self>) -> Result<ProcessState, TaskError> {
        let _turn = self.turn.lock().await;
        self.main.check(Step::Delete)?;
        if self.main.state() == State::Created {
            self.main.shut();
            let ended = tokio::time::timeout(END, self.main.wait()).await;
            ended.map_err(|_| TaskError::Kernel {
                what: "end the process",
                source: std::io::ErrorKind::TimedOut.into(),
            })?;
        }
        self.in_cgroup("kill", Cgroup::kill).await?;
        let execs: Vec<_> = self.lock_execs().values().cloned().collect();
        for process in execs.iter().map(|exec| &exec.process).chain([&self.main]) {
            process.drain().await;
        }
        self.stop_watching_memory();
        self.in_cgroup("delete", Cgroup::delete).await?;
        self.unmount().await?;
        self.run_poststop().await;
        let last = self.describe(&self.main);
        self.main.step(Step::Delete)?;
        Ok(last)
    }

    pub(super) fn tell_deletion(&self, last: &ProcessState) {
        let (status, at) = exit_or_none(last.exit);
        self.publish(TaskDelete {
            container_id: self.id.clone(),
            pid: last.pid,
            exit_status: status,
            exited_at: MessageField::some(timestamp(at)),
            ..TaskDelete::default()
        });
    }

    pub(super) fn watch_main(self: &Arc<Self>, child: Child, pidfd: Arc<OwnedFd>) {
        let container = self.clone();
        tokio::spawn(async move {
            let exit = container.exit_of(child, pidfd).await;
            container.end_execs().await;
            container.ended(&container.main, exit).await;
        });
    }

    pub(super) async fn exit_of(&self, child: Child, pidfd: Arc<OwnedFd>) -> Exit {
        child.wait(pidfd).await.unwrap_or_else(|e| {
            warn!("{}: cannot wait for a process: {e}", self.id);
            Exit {
                status: 255,
                at: SystemTime::now(),
            }
        })
    }

    /// Notes and tells an exit, after the start was told.
    pub(super) async fn ended(&self, process: &Process, exit: Exit) {
        let _order = process.order.lock().await;
        process.end();
        let id = match process.id.as_str() {
            "" => &self.id,
            id => id,
        };
        self.publish(TaskExit {
            container_id: self.id.clone(),
            id: id.to_owned(),
            pid: process.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..TaskExit::default()
        });
        process.tell(exit);
    }

    pub(super) fn watch_memory(&self) {
        let (cgroup, publisher) = (self.cgroup.clone(), self.node.publisher.clone());
        let id = self.id.clone();
        let watch = tokio::spawn(async move {
            let mut oom = match cgroup.oom() {
                Ok(oom) => oom,
                Err(e) => return debug!("{id}: no events about memory: {e}"),
            };
            while oom.next().await.is_some() {
                publisher.publish(TaskOOM {
                    container_id: id.clone(),
                    ..TaskOOM::default()
                });
            }
        });
        *self.memory.lock().unwrap_or_else(|e| e.into_inner()) = Some(watch.abort_handle());
    }

    pub(super) fn publish(&self, event: impl Event + 'static) {
        self.node.publisher.publish(event);
    }

    pub(super) fn lock_execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn exec(&self, exec_id: &str) -> Result<Arc<Exec>, TaskError> {
        let found = self.lock_execs().get(exec_id).cloned();
        found.ok_or_else(|| TaskError::NoProcess(exec_id.to_owned()))
    }

    pub(super) fn describe(&self, process: &Process) -> ProcessState {
        ProcessState {
            pid: process.pid(),
            state: process.state(),
            exit: process.exit(),
            bundle: self.bundle.clone(),
            stdio: process.stdio.clone(),
        }
    }

    fn process(&self, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        match exec_id {
            "" => Ok(self.main.clone()),
            id => Ok(self.exec(id)?.process.clone()),
        }
    }

    async fn unmount(&self) -> Result<(), TaskError> {
        let root = self.root.lock().unwrap_or_else(|e| e.into_inner()).take();
        let rootfs = self.bundle.join("rootfs");
        let unmount = move || {
            drop(root);
            // It is no mount point where the root was mounted in the container's namespace only.
            let _ = unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        };
        blocking(unmount).await
    }

    async fn run_poststop(&self) {
        if !self.nature.has_poststop {
            return;
        }
        let _hooks = self.node.reaper.launch();
        match read_spec(&self.bundle) {
            Ok(spec) => launch::poststop(&self.id, &self.bundle, &spec).await,
            Err(e) => warn!("{}: no poststop hooks: {e}", self.id),
        }
    }

    /// The main process has ended: the others end too, and are told first.
    async fn end_execs(&self) {
        if !self.nature.owns_pids {
            let killed = self.in_cgroup("kill", Cgroup::kill).await;
            killed.unwrap_or_else(|e| warn!("{}: {e}", self.id));
        }
        let execs: Vec<_> = self.lock_execs().values().cloned().collect();
        let all = async {
            for exec in execs.iter().filter(|exec| exec.process.pid() != 0) {
                exec.process.wait().await;
            }
        };
        if tokio::time::timeout(END, all).await.is_err() {
            warn!("{}: a further process outlives the main one", self.id);
        }
    }

    /// Whoever forks meanwhile may escape a signal other than `SIGKILL`, which the cgroup sees to.
    async fn kill_all(&self, signal: i32) -> Result<(), TaskError> {
        if signal == SIGKILL {
            return self.in_cgroup("kill", Cgroup::kill).await;
        }
        let pids = self.in_cgroup("read", Cgroup::pids).await?;
        blocking(move || pids.into_iter().for_each(|pid| signal_one(pid, signal))).await
    }

    async fn in_cgroup<T: Send + 'static>(
        &self,
        what: &'static str,
        act: impl FnOnce(&Cgroup) -> Result<T, CgroupError> + Send + 'static,
    ) -> Result<T, TaskError> {
        let cgroup = self.cgroup.clone();
        let done = blocking(move || act(&cgroup)).await?;
        done.map_err(|source| TaskError::Cgroup { what, source })
    }

    fn stop_watching_memory(&self) {
        let watch = self.memory.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(watch) = watch {
            watch.abort();
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.stop_watching_memory();
    }
}

/// What the Task API says of a process that has not ended.
#[must_use]
pub fn exit_or_none(exit: Option<Exit>) -> (u32, SystemTime) {
    exit.map_or((0, SystemTime::UNIX_EPOCH), |exit| (exit.status, exit.at))
}

/// A process that has ended meanwhile needs no signal.
fn signal_one(pid: u32, signal: i32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let Some(pid) = pid else { return };
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    if let Ok(pidfd) = pidfd {
        let _ = super::sys::send_signal(std::os::fd::AsFd::as_fd(&pidfd), signal);
    }
}
