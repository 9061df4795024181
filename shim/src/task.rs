//! Containers and their processes: what they may do next, and who sees to it.
//!
//! `state` decides and touches nothing; `container` acts; `process` is one process, `reaper` waits for them.
//! Each operation runs in a task of its own, so a caller that goes away leaves nothing half done.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use log::debug;
use tokio::task::{AbortHandle, JoinHandle};

use crate::{
    cgroup::CgroupError,
    events::Publisher,
    launch::{LaunchError, Launcher},
    reaper::Reaper,
    stdio::StdioError,
};

pub mod state;

mod container;
mod create;
mod exec;
mod process;
mod record;
mod sys;

use create::{Origin, Prepared};

pub use container::{Container, ProcessState, exit_or_none};
pub use create::Create;
pub use exec::Exec;
pub use record::Record;
pub use state::{State, Step, StepError};

/// What all containers of this process share.
#[derive(Debug)]
pub struct Node {
    /// containerd's namespace.
    pub namespace: String,
    /// Makes processes.
    pub launcher: Launcher,
    /// Waits for them.
    pub reaper: Reaper,
    /// Tells what happened.
    pub publisher: Publisher,
}

/// All containers of this process, by name.
#[derive(Debug)]
pub struct Tasks {
    node: Arc<Node>,
    table: Mutex<HashMap<String, Option<Arc<Container>>>>,
    expected: Mutex<HashMap<String, Expected>>,
    /// When a container was asked for last.
    asked: Mutex<Instant>,
}

/// How long what was prepared for a container waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A container that is about to be asked for.
#[derive(Debug)]
struct Expected {
    prepared: JoinHandle<Result<Prepared, TaskError>>,
    /// Undoes it after a while.
    end: AbortHandle,
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// There is no such container.
    #[error("container {0} not created")]
    NoContainer(String),
    /// There is no such process in the container.
    #[error("process {0} does not exist")]
    NoProcess(String),
    /// A container or a process has that name already.
    #[error("{0} already exists")]
    Exists(String),
    /// The process has ended.
    #[error("process already finished")]
    Finished,
    /// The process has no pid yet.
    #[error("process not created")]
    NotStarted,
    /// Its state does not allow it.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The request asks for what is impossible.
    #[error("{field}: {reason}")]
    Invalid {
        /// As in the request.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// This shim does not do that.
    #[error("{0} is not implemented")]
    Unsupported(&'static str),
    /// There is no process.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// There are no streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The cgroup refused.
    #[error("cannot {what} the cgroup")]
    Cgroup {
        /// As in "freeze".
        what: &'static str,
        /// Why.
        source: CgroupError,
    },
    /// A file of the bundle is bad.
    #[error("cannot read {path}")]
    Bundle {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {what}")]
    Kernel {
        /// As in "send the signal".
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The operation broke off.
    #[error("the operation broke off; the log of the shim says why")]
    Broken,
}

impl Tasks {
    /// No containers yet.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self {
            node: Arc::new(node),
            table: Mutex::default(),
            expected: Mutex::default(),
            asked: Mutex::new(Instant::now()),
        }
    }

    /// Makes a container and answers the pid of its main process, which waits for its start.
    ///
    /// # Errors
    /// The name is taken, or the container cannot be made; nothing is left of it then.
    pub async fn create(self: &Arc<Self>, create: Create) -> Result<u32, TaskError> {
        *self.asked.lock().unwrap_or_else(|e| e.into_inner()) = Instant::now();
        let place = Place::take(self, &create.id)?;
        let mut prepared = self.prepared(&create.id).await;
        let made = Container::create(self.node.clone(), create, &mut prepared).await;
        if let Some(unused) = prepared {
            blocking(move || unused.undo()).await?;
        }
        let container = made?;
        let pid = container.pid();
        place.fill(container);
        Ok(pid)
    }

    /// Begins with a container that is about to be asked for. What cannot be made is made once more then, and its
    /// failure told.
    pub fn expect(self: &Arc<Self>, id: String, bundle: PathBuf) {
        if self.lock().contains_key(&id) {
            return;
        }
        let mut expected = self.lock_expected();
        // Of an earlier bundle of the same name.
        let before = expected.remove(&id);
        let (node, name) = (self.node.clone(), id.clone());
        let prepared = tokio::spawn(async move {
            if let Some(before) = before {
                before.end.abort();
                before.undo(&name).await;
            }
            blocking(move || Prepared::make(&node, Origin::read(&name, &bundle, false)?)).await?
        });
        let (tasks, name) = (self.clone(), id.clone());
        let end = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            let expected = tasks.lock_expected().remove(&name);
            if let Some(expected) = expected {
                expected.undo(&name).await;
            }
        });
        let end = end.abort_handle();
        expected.insert(id, Expected { prepared, end });
    }

    /// What was prepared for a container.
    async fn prepared(&self, id: &str) -> Option<Prepared> {
        let expected = self.lock_expected().remove(id)?;
        expected.end.abort();
        expected.prepared(id).await
    }

    /// # Errors
    /// [`TaskError::NoContainer`], also while it is being made.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        let found = self.lock().get(id).cloned().flatten();
        found.ok_or_else(|| TaskError::NoContainer(id.to_owned()))
    }

    /// Deletes a container, or a further process of it.
    ///
    /// # Errors
    /// It still runs, or something of it cannot be removed; then it can be tried again.
    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<ProcessState, TaskError> {
        let container = self.get(id)?;
        if !exec_id.is_empty() {
            return container.delete_exec(exec_id).await;
        }
        let last = container.delete().await?;
        self.lock().remove(id);
        container.tell_deletion(&last);
        Ok(last)
    }

    /// Whether there is no container, not even one that is being made or expected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty() && self.lock_expected().is_empty()
    }

    /// When a container was asked for last; before the first, when this process began.
    #[must_use]
    pub fn last_asked(&self) -> Instant {
        *self.asked.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits until containerd knows all that happened, with a bound.
    pub async fn flush(&self, bound: std::time::Duration) {
        self.node.publisher.flush(bound).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Container>>>> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn lock_expected(&self) -> MutexGuard<'_, HashMap<String, Expected>> {
        self.expected.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Expected {
    async fn prepared(self, id: &str) -> Option<Prepared> {
        let prepared = self.prepared.await.unwrap_or(Err(TaskError::Broken));
        prepared
            .inspect_err(|e| debug!("{id}: not prepared: {e}"))
            .ok()
    }

    async fn undo(self, id: &str) {
        if let Some(prepared) = self.prepared(id).await {
            debug!("{id}: nobody asked for it");
            let _ = blocking(move || prepared.undo()).await;
        }
    }
}

/// A name that is taken while its container is being made. Dropping it gives the name back.
struct Place {
    tasks: Arc<Tasks>,
    id: Option<String>,
}

impl Place {
    fn take(tasks: &Arc<Tasks>, id: &str) -> Result<Self, TaskError> {
        let mut table = tasks.lock();
        if table.contains_key(id) {
            return Err(TaskError::Exists(format!("container {id}")));
        }
        table.insert(id.to_owned(), None);
        drop(table);
        Ok(Self {
            tasks: tasks.clone(),
            id: Some(id.to_owned()),
        })
    }

    fn fill(mut self, container: Arc<Container>) {
        if let Some(id) = self.id.take() {
            self.tasks.lock().insert(id, Some(container));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.tasks.lock().remove(&id);
        }
    }
}

/// Runs what blocks on a thread made for that.
async fn blocking<T: Send + 'static>(
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskError> {
    let result = tokio::task::spawn_blocking(what).await;
    result.map_err(|_| TaskError::Broken)
}
