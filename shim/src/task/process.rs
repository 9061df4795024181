//! One process of a container: its state, its signals, its streams, its exit.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::{State, Step, StepError, TaskError, sys};
use crate::{
    launch::{Created, Gate},
    reaper::Exit,
    stdio::{Io, StdioConfig, Streams},
};

/// How long output may take to reach its reader once the process has ended.
///
/// Source: containerd's runc shim.
const DRAIN: Duration = Duration::from_secs(2);

/// The main process of a container, or a further one.
#[derive(Debug)]
pub(super) struct Process {
    /// The further process's name; empty for the main one.
    pub(super) id: String,
    pub(super) stdio: StdioConfig,
    life: Mutex<Life>,
    exit: watch::Sender<Option<Exit>>,
    /// Held from its start until the start is told, so that its exit is told later.
    pub(super) order: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Life {
    state: State,
    pid: u32,
    pidfd: Option<Arc<OwnedFd>>,
    gate: Option<Gate>,
    io: Option<Arc<Io>>,
}

impl Process {
    pub(super) fn new(id: &str, stdio: StdioConfig) -> Self {
        Self {
            id: id.to_owned(),
            stdio,
            life: Mutex::new(Life {
                state: State::Created,
                pid: 0,
                pidfd: None,
                gate: None,
                io: None,
            }),
            exit: watch::Sender::new(None),
            order: tokio::sync::Mutex::default(),
        }
    }

    /// The kernel made the process; its streams begin to flow.
    pub(super) fn made(&self, created: Created, streams: Streams) -> io::Result<Arc<OwnedFd>> {
        let pidfd = Arc::new(created.pidfd);
        let mut life = self.lock();
        life.pid = created.pid;
        life.pidfd = Some(pidfd.clone());
        life.gate = Some(created.gate);
        life.io = Some(Arc::new(streams.run(created.console)?));
        Ok(pidfd)
    }

    pub(super) fn pid(&self) -> u32 {
        self.lock().pid
    }

    pub(super) fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        self.lock().pidfd.clone()
    }

    pub(super) fn state(&self) -> State {
        self.lock().state
    }

    /// Whether the step is allowed now.
    pub(super) fn check(&self, step: Step) -> Result<(), StepError> {
        self.state().after(step).map(drop)
    }

    pub(super) fn step(&self, step: Step) -> Result<State, StepError> {
        let mut life = self.lock();
        life.state = life.state.after(step)?;
        Ok(life.state)
    }

    /// Lets the program run. Call it with `order` held.
    pub(super) async fn open(&self) -> Result<(), TaskError> {
        self.check(Step::Start)?;
        let gate = self.lock().gate.take().ok_or(StepError {
            step: Step::Start,
            from: State::Stopped,
        })?;
        gate.open().await?;
        self.step(Step::Start)?;
        Ok(())
    }

    /// Ends a process that was never started.
    pub(super) fn shut(&self) {
        self.lock().gate.take();
    }

    /// # Errors
    /// [`TaskError::Finished`] where the process has ended.
    pub(super) fn kill(&self, signal: i32) -> Result<(), TaskError> {
        if self.state() == State::Stopped {
            return Err(TaskError::Finished);
        }
        self.check(Step::Kill)?;
        let pidfd = self.pidfd().ok_or(TaskError::NotStarted)?;
        match sys::send_signal(pidfd.as_fd(), signal) {
            Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => Err(TaskError::Finished),
            result => result.map_err(|source| TaskError::Kernel {
                what: "send the signal",
                source,
            }),
        }
    }

    /// The process has ended: notes it, without telling those who wait.
    pub(super) fn end(&self) {
        let mut life = self.lock();
        if let Ok(state) = life.state.after(Step::Exit) {
            life.state = state;
        }
        life.pidfd = None;
        life.gate = None;
        if let Some(io) = &life.io {
            io.stop_stdin();
        }
    }

    /// Tells the exit to those who wait.
    pub(super) fn tell(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    /// The process could not be made.
    pub(super) fn fail(&self) {
        self.end();
        self.tell(Exit {
            status: 255,
            at: SystemTime::now(),
        });
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits until the exit is told.
    pub(super) async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let told = exit.wait_for(Option::is_some).await;
        told.ok()
            .and_then(|exit| *exit)
            .expect("the sender lives as long as this process, and some was waited for")
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        self.io().map_or(Ok(()), |io| io.resize(columns, rows))
    }

    pub(super) fn close_stdin(&self) {
        if let Some(io) = self.io() {
            io.close_stdin();
        }
    }

    /// Waits for the output, with a bound, and ends the streams.
    pub(super) async fn drain(&self) {
        let io = self.lock().io.take();
        if let Some(io) = io {
            io.drain(DRAIN).await;
        }
    }

    fn io(&self) -> Option<Arc<Io>> {
        self.lock().io.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(|e| e.into_inner())
    }
}
