//! From source to a function that runs: the build in a sandbox, its artifact, and the code unpacked from it.
//!
//! ```text
//! queued ──▶ running ──▶ stored ──▶ unpacked ──▶ succeeded: the function is the new one
//!    └──────────┴───────────┴──────────┴───────▶ failed: the function is the previous one
//! ```
//!
//! What is recorded where is `function::store`'s, what an instance does with the code `executor`'s.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    code::CodeCache,
    config::{Classes, Config},
    executor::{Executor, instance::InstanceSpec},
    function::{Catalog, Function, Store},
    id::{Digest, FunctionName, InstanceId},
    storage::Storage,
    turns::Turns,
};

mod artifact;
mod cache;
mod cleaning;
pub mod client;
mod error;
mod log;
mod recipe;
mod running;
mod specs;
#[cfg(test)]
mod tests;

pub use artifact::ArtifactError;
pub use error::BuildError;

/// Builds at once; more wait.
const CONCURRENT: usize = 2;
/// Builds that run or wait, each with a copy of its source; more are refused.
const WAITING: usize = 16;
/// How long a build may take, from the pull of its image on.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of a source, and of an artifact.
const MAX_ARCHIVE_BYTES: u64 = 512 << 20;

/// What is to be deployed.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The function; its artifact is set by the build, and an empty entrypoint takes the runtime's.
    pub function: Function,
    /// A tar archive of the source, compressed by gzip.
    pub source: PathBuf,
    /// The install command; none takes the runtime's, where its manifest is in the source.
    pub command: Option<String>,
}

/// What happens to a build, as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildEvent {
    /// It waits for other builds.
    Queued,
    /// It runs, and has this number.
    Started {
        /// As in [`crate::function::store::Build`].
        build: i64,
    },
    /// It wrote this to its terminal.
    Output(Bytes),
    /// It ended well, and its artifact is being unpacked.
    Stored {
        /// The artifact.
        artifact: Digest,
        /// Its size.
        size_bytes: u64,
    },
}

/// The parts of a node that builds work with.
#[derive(Debug)]
pub struct Parts {
    /// Runs them.
    pub executor: Arc<Executor>,
    /// Records them.
    pub store: Store,
    /// Knows the runtimes.
    pub catalog: Arc<Catalog>,
    /// Keeps artifacts.
    pub storage: Storage,
    /// Keeps unpacked code.
    pub code: CodeCache,
    /// Those that functions may be of.
    pub classes: Arc<Classes>,
}

/// The builds of this node.
#[derive(Debug, Clone)]
pub struct Builds {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    /// Private copies of sources, one folder a build.
    sources: PathBuf,
    caches: cache::Caches,
    turns: Turns<FunctionName>,
    running: tokio::sync::Semaphore,
    waiting: tokio::sync::Semaphore,
    specs: specs::Specs,
    cleaning: cleaning::Cleaning,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Builds {
    /// Prepares for builds, and removes the sources that a crash left. Blocks: called once, at start.
    ///
    /// # Errors
    /// `<state_dir>/builds` or `<state_dir>/function-cache` cannot be made or emptied.
    pub fn new(config: &Config, parts: Parts) -> io::Result<Self> {
        let sources = config.state_dir.join("builds");
        empty(&sources)?;
        let caches = cache::Caches::open(config.state_dir.join("function-cache"))?;
        Ok(Self {
            inner: Arc::new(Inner {
                parts,
                sources,
                caches,
                turns: Turns::default(),
                running: tokio::sync::Semaphore::new(CONCURRENT),
                waiting: tokio::sync::Semaphore::new(WAITING),
                specs: specs::Specs::default(),
                cleaning: cleaning::Cleaning::default(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        })
    }

    /// Builds a function and puts it in the place of the one of its name. Goes on where the caller goes away.
    ///
    /// Builds of one function run in the order in which they came. Events that `progress` has no room for are left out.
    ///
    /// # Errors
    /// See [`BuildError`]; the previous function goes on, and the failed build's log is in the store.
    pub async fn deploy(
        &self,
        deployment: Deployment,
        progress: mpsc::Sender<BuildEvent>,
    ) -> Result<Arc<Function>, BuildError> {
        if self.inner.tasks.is_closed() {
            return Err(BuildError::Stopping);
        }
        let inner = self.inner.clone();
        let work = async move { inner.deploy(deployment, progress).await };
        let task = self.inner.tasks.spawn(work);
        task.await
            .expect("a build does not panic, and nobody aborts it")
    }

    /// Removes a function, its builds' records and cache, and its instances once no execution uses them.
    /// Waits for a running build of it. Answers whether there was one.
    ///
    /// # Errors
    /// The database failed; then nothing has changed.
    pub async fn remove(&self, name: &FunctionName) -> Result<bool, BuildError> {
        let _turn = self.inner.turns.take(name).await;
        let Some(function) = self.inner.parts.store.remove(name).await? else {
            return Ok(false);
        };
        if let Err(error) = self.inner.caches.remove(name) {
            tracing::warn!(function = %name, %error, "could not remove a build's cache");
        }
        self.inner.specs.forget(name);
        self.inner.retire(&function);
        Ok(true)
    }

    /// What an instance of `function` is made of, its code unpacked where it is not yet.
    /// Costs a look into a table where the function has not changed since the last call.
    ///
    /// # Errors
    /// The function's runtime is no longer in the catalogue, or its artifact cannot be read.
    pub async fn instance(
        &self,
        function: &Arc<Function>,
    ) -> Result<Arc<InstanceSpec>, BuildError> {
        self.inner.specs.get(&self.inner, function).await
    }

    /// Removes artifacts and code that no function has referred to since the call before, unless an
    /// instance of an earlier build still runs. Call it every minute or so.
    ///
    /// # Errors
    /// The disk refused; what could be removed is gone.
    pub async fn clean(&self) -> Result<(), BuildError> {
        cleaning::clean(&self.inner).await
    }

    /// Takes no more builds, ends the ones that run, and waits for their end.
    pub async fn stop(&self) {
        self.inner.tasks.close();
        self.inner.stop.cancel();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    /// The name of a function's instances; none where its runtime is no longer in the catalogue.
    fn instance_id(&self, function: &Function) -> Option<InstanceId> {
        let runtime = self.parts.catalog.find(&function.runtime).ok()?;
        Some(function.instance_id(&runtime))
    }

    /// Ends the instances of a function that is no longer the active one. Without a runtime there are none.
    fn retire(&self, function: &Function) {
        if let Some(id) = self.instance_id(function) {
            self.parts.executor.retire(&id);
        }
    }
}

fn empty(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(directory.parent().unwrap_or(Path::new("/")))?;
    // Containers' runtimes may look for a source with the sandbox's ids: they pass, but cannot list.
    fs::DirBuilder::new().mode(0o711).create(directory)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("file operations do not panic")
}
