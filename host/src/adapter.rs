//! The container engine: makes sandboxes, reaches into them, tells what becomes of them.
//!
//! What runs in a sandbox, and when, is the executor's to decide; images are `opr_images`'.
//!
//! ```text
//! create ──▶ running ──▶ exited ──▶ (delete) gone
//!               ▲ └─────────┼───────(delete)──▲
//!               └─(restart)─┘
//! ```

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::{net::TcpStream, sync::broadcast};

use crate::{
    config::Limits,
    id::{ClassName, SandboxId},
};

pub mod containerd;
pub mod memory;
pub mod output;
pub mod process;

mod cgroup;
mod client;
mod dial;
mod disk;
mod engine;
mod events;
mod network;
mod program;
mod rootfs;
mod seccomp;
mod slots;
mod spec;
mod stdio;

pub use containerd::Containerd;
pub use engine::{keep as keep_containerd, keeper as containerd_keeper};
pub use output::Output;
pub use process::{Process, ProcessSpec};

/// A container engine. Every call is safe to repeat.
#[async_trait]
pub trait Adapter: fmt::Debug + Send + Sync + 'static {
    /// Makes a sandbox and starts its main process. Undoes all of it when a step fails.
    ///
    /// # Errors
    /// See [`CreateError`].
    async fn create(&self, spec: SandboxSpec) -> Result<Sandbox, CreateError>;

    /// Starts the main process of a sandbox again, which has ended; what the sandbox wrote stays.
    ///
    /// # Errors
    /// See [`CreateError`]; the sandbox is still to be deleted.
    async fn restart(&self, id: &SandboxId) -> Result<Sandbox, CreateError>;

    /// Processor time that a sandbox has used since its main process started; none where that is not known.
    fn cpu_time(&self, id: &SandboxId) -> Option<Duration>;

    /// Memory that a sandbox uses; none where that is not known.
    fn memory(&self, id: &SandboxId) -> Option<Memory>;

    /// Connects to `port` on the sandbox's own loopback address.
    ///
    /// # Errors
    /// `ConnectionRefused` while nothing listens; `NotFound` where there is no such sandbox.
    async fn dial(&self, id: &SandboxId, port: u16) -> io::Result<TcpStream>;

    /// Starts a process beside the main one, with the main one's user, working directory and environment.
    /// It has no input: who reads is told so.
    ///
    /// # Errors
    /// See [`EngineError`]; there is no such sandbox, or it has no such program.
    async fn exec(&self, id: &SandboxId, spec: ProcessSpec) -> Result<Process, EngineError>;

    /// Sets new limits on a running sandbox.
    ///
    /// # Errors
    /// See [`EngineError`].
    async fn update(&self, id: &SandboxId, limits: Limits) -> Result<(), EngineError>;

    /// Adds to what is kept with a sandbox for the host's own restart; a later value of one name wins.
    ///
    /// # Errors
    /// See [`EngineError`]; there is no such sandbox.
    async fn label(
        &self,
        id: &SandboxId,
        labels: BTreeMap<String, String>,
    ) -> Result<(), EngineError>;

    /// Kills what runs in the sandbox and removes all of it. Succeeds where there is none.
    ///
    /// # Errors
    /// See [`EngineError`]; what could be removed is gone, a repeated call goes on.
    async fn delete(&self, id: &SandboxId) -> Result<(), EngineError>;

    /// The sandboxes of this host that run, after removing the remains of those that do not: called once, at start.
    ///
    /// # Errors
    /// See [`EngineError`].
    async fn adopt(&self) -> Result<Vec<Sandbox>, EngineError>;

    /// What happens to sandboxes from now on.
    fn events(&self) -> broadcast::Receiver<Event>;
}

/// What a sandbox uses of the machine's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// Bytes.
    pub used: u64,
    /// Bytes; none is no limit.
    pub limit: Option<u64>,
    /// Share of the last ten seconds in which something in it waited for memory. Percent; version 2 only.
    pub pressure: Option<f64>,
}

/// All that the engine must know to make a sandbox.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Names the container, its cgroup and its folders.
    pub id: SandboxId,
    /// Chooses the cgroup, the containerd runtime, the root file system's kind and the outbound network.
    pub class: ClassName,
    /// The image, pulled where it is absent.
    pub image: opr_images::Reference,
    /// What `uname -n` answers inside.
    pub hostname: String,
    /// The main process. `None` takes the image's entrypoint and command.
    pub command: Option<Vec<String>>,
    /// Environment on top of the image's; a later value of one name wins.
    pub env: Vec<(String, String)>,
    /// Where the main process starts; `None` takes the image's.
    pub working_dir: Option<PathBuf>,
    /// Directories and files of the host, and of the sandbox's own scratch, to be seen inside.
    pub mounts: Vec<Mount>,
    /// Limits of this sandbox, within those of its class.
    pub limits: Limits,
    /// Whether the main process has a terminal for its output (CR LF line ends, colours).
    pub terminal: bool,
    /// What the host wants to know of this sandbox after its own restart; kept with the container.
    pub labels: BTreeMap<String, String>,
}

/// Something seen inside a sandbox at `target`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it comes from.
    pub source: Source,
    /// Absolute path inside.
    pub target: PathBuf,
    /// Whether the sandbox may write to it.
    pub is_writable: bool,
}

/// Where a [`Mount`] comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory or file of the host.
    Host(PathBuf),
    /// A directory of this name in the sandbox's own bounded scratch, see [`Sandbox::scratch`].
    Scratch(String),
    /// A directory of the host that the sandbox sees as its own: what it changes is in its scratch, and the directory
    /// stays as it is. [`Mount::is_writable`] must be set.
    Overlay(PathBuf),
}

/// A sandbox that was made and started.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its name.
    pub id: SandboxId,
    /// As in its [`SandboxSpec`].
    pub labels: BTreeMap<String, String>,
    /// The host's path of its scratch: a tmpfs, or on disk with its root. Hostile: open beneath it only.
    pub scratch: PathBuf,
    /// What its main process writes to standard output and error, the latest part of it.
    pub output: Arc<Output>,
    /// How long the steps took; zero where it was adopted.
    pub phases: CreatePhases,
}

impl Sandbox {
    /// The host's path of a [`Source::Scratch`] directory.
    pub fn scratch_dir(&self, name: &str) -> PathBuf {
        self.scratch.join(Path::new(name))
    }
}

/// How long each step of a sandbox's creation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreatePhases {
    /// Namespaces from the pool, file systems.
    pub sandbox: Duration,
    /// The engine's container and task.
    pub create: Duration,
    /// Until the main process runs.
    pub start: Duration,
}

/// Something that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The main process ended. `code` is its exit code, or 128 plus the signal that ended it.
    Exited {
        /// Whose.
        id: SandboxId,
        /// See above.
        code: u32,
    },
    /// The kernel killed a process of the sandbox for want of memory.
    OutOfMemory {
        /// Whose.
        id: SandboxId,
    },
}

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The image is absent and could not be pulled.
    #[error("missing image {image} and failed to pull it")]
    Image {
        /// Its reference.
        image: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A sandbox of that id exists.
    #[error("sandbox {id} already exists")]
    Exists {
        /// Its id.
        id: SandboxId,
    },
    /// No sandbox of that id is here.
    #[error("there is no sandbox {id}")]
    Absent {
        /// Its id.
        id: SandboxId,
    },
    /// No class of that name.
    #[error("there is no class {class} in the settings")]
    Class {
        /// Its name.
        class: ClassName,
    },
    /// The main process could not be executed: the image or the command is wrong.
    #[error("cannot start the command of sandbox {id}")]
    Command {
        /// Whose.
        id: SandboxId,
        /// What the engine said.
        source: EngineError,
    },
    /// A namespace, file system or network could not be made.
    #[error("cannot prepare sandbox {id}: {step}")]
    Prepare {
        /// Whose.
        id: SandboxId,
        /// Which step.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The engine refused or is not there.
    #[error("cannot make sandbox {id}")]
    Engine {
        /// Whose.
        id: SandboxId,
        /// Why.
        source: EngineError,
    },
}

/// The container engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It does not answer.
    #[error("containerd does not answer on {socket}")]
    Unreachable {
        /// Where it should.
        socket: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It answered with a failure.
    #[error("containerd could not {what}: {message}")]
    Refused {
        /// The call.
        what: &'static str,
        /// Its words.
        message: String,
    },
    /// The kernel refused what the host itself does for a sandbox.
    #[error("cannot {what}")]
    Kernel {
        /// The step.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}
