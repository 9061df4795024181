//! What is done in a new instance before it serves: a build that a client commands.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{REASON_PATIENCE, instance::InstanceSpec, pool::Instance, transcript::Transcript};
use crate::adapter::{Adapter, EngineError, Mount, Process, ProcessSpec};

/// An instance to be made.
#[derive(Debug, Clone)]
pub struct Creation {
    /// What it is made of.
    pub spec: InstanceSpec,
    /// What is done in it before it serves.
    pub setup: Option<Arc<dyn Setup>>,
    /// Whether it is deleted again as soon as it is made.
    pub is_removed: bool,
}

impl From<InstanceSpec> for Creation {
    /// An instance that serves at once, and stays.
    fn from(spec: InstanceSpec) -> Self {
        Self {
            spec,
            setup: None,
            is_removed: false,
        }
    }
}

/// Work in a new instance. The instance is made when it has ended well, and deleted when it has not.
#[async_trait]
pub trait Setup: fmt::Debug + Send + Sync {
    /// What the instance sees for it, besides what each does.
    fn mounts(&self) -> Vec<Mount>;

    /// Waits for its turn; nothing of the instance is made before.
    ///
    /// # Errors
    /// Too many wait already.
    async fn admit(&self) -> Result<(), SetupError>;

    /// Where what it writes is kept for whoever follows.
    fn transcript(&self) -> Arc<Transcript>;

    /// Does it. Dropped where the instance ends before.
    ///
    /// # Errors
    /// See [`SetupError`].
    async fn run(&self, site: Site<'_>) -> Result<(), SetupError>;
}

/// Why a setup ended without success.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Too many wait for their turn.
    #[error("this node has {queue} builds waiting and takes no more")]
    QueueFull {
        /// The limit.
        queue: usize,
    },
    /// Its command ended with a code that is not 0.
    #[error("{output}")]
    Failed {
        /// What it wrote, and how it ended.
        output: String,
    },
    /// Its command did not end in time.
    #[error("the build's command timed out: it did not end within {seconds} s")]
    Timeout {
        /// How long it had.
        seconds: u64,
    },
    /// Its command could not be run.
    #[error("cannot run the build's command")]
    Run {
        /// Why.
        source: EngineError,
    },
    /// It left nothing that can be taken.
    #[error("the build's command ended well, but its result cannot be taken")]
    Artifact {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What it made could not be stored.
    #[error("cannot store what the build made")]
    Store {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// An instance in which a setup runs.
#[derive(Debug)]
pub struct Site<'a> {
    pub(super) adapter: &'a dyn Adapter,
    pub(super) instance: &'a Instance,
}

impl Site<'_> {
    /// Starts a process in it.
    ///
    /// # Errors
    /// See [`Adapter::exec`].
    pub async fn exec(&self, spec: ProcessSpec) -> Result<Process, EngineError> {
        self.adapter.exec(&self.instance.sandbox_id, spec).await
    }

    /// The host's path of one of its own folders. Hostile: open beneath it only.
    pub fn folder(&self, name: &str) -> PathBuf {
        let made = self.instance.made.get();
        let made = made.expect("a setup runs in a sandbox that is made");
        made.sandbox.scratch_dir(name)
    }

    /// Whether the kernel killed a process of it for want of memory, where one has just ended with this code.
    pub async fn was_out_of_memory(&self, code: u32) -> bool {
        let killed = 128 + 9;
        let patience = if code == killed {
            REASON_PATIENCE
        } else {
            Duration::ZERO
        };
        self.instance.notices.was_out_of_memory(patience).await
    }
}
