//! Builds that clients of the executor API command: a line of shell in an instance of the client's image, on the
//! client's source; what it leaves is stored where the client says.
//!
//! ```text
//! cache restored ──▶ command ──▶ cache stored ──▶ artifact stored
//! ```
//!
//! As many at once as the settings say; more wait for their turn. A cache that cannot be used is a warning, everything
//! else ends the build.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use tempfile::TempPath;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{ArtifactError, MAX_ARCHIVE_BYTES, artifact, blocking};
use crate::{
    adapter::{Mount, ProcessSpec, Source},
    config::{Config, Device},
    executor::{
        instance::Protocol,
        setup::{Setup, SetupError, Site},
        transcript::{LIMIT, Part, Transcript},
    },
    id::CacheKey,
    storage::objects::{ObjectError, Objects},
    telemetry::chain,
};

mod cache;

/// Where a build's archive is in a sandbox's scratch.
const BUILDS: &str = "builds";
/// The archives that a build may leave, the first of them is taken, and how they are called in the storage.
const ARCHIVES: [(&str, &str); 2] = [(artifact::ARCHIVE, "gz"), ("code.sqfs", "sqfs")];

/// What a client wants built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The protocol of its image.
    pub protocol: Protocol,
    /// The line of shell; without one the artifact is there from the start.
    pub command: Option<String>,
    /// How long the command may take; `None` is no limit.
    pub timeout: Option<Duration>,
    /// The folder of the storage to which the artifact goes; `None` keeps none.
    pub destination: Option<String>,
    /// Builds of one key share what their package managers download.
    pub cache_key: Option<CacheKey>,
}

/// What came of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What was stored, where that was asked for.
    pub artifact: Option<Artifact>,
    /// What the build wrote.
    pub output: Vec<Part>,
}

/// A stored artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Where it is in the storage.
    pub path: String,
    /// Its bytes.
    pub size_bytes: u64,
}

/// The builds of clients.
#[derive(Debug, Clone)]
pub struct ClientBuilds(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    objects: Objects,
    /// The storage of caches, and where they are in it.
    caches: Objects,
    cache_root: String,
    /// Private copies of what is on its way between a sandbox and the storage.
    staging: PathBuf,
    /// A permit for each build that may run.
    running: Arc<Semaphore>,
    /// A permit for each build that may run or wait.
    waiting: Arc<Semaphore>,
    queue: usize,
}

impl ClientBuilds {
    /// Prepares for builds whose artifacts go to `objects` and whose caches to `caches`, and removes what a crash
    /// left of some. Blocks: called once, at start.
    ///
    /// # Errors
    /// `<state_dir>/staging` cannot be made or emptied.
    pub fn new(config: &Config, objects: Objects, caches: Objects) -> io::Result<Self> {
        let (builds, queue) = (config.executor.builds, config.executor.build_queue);
        let staging = config.state_dir.join("staging");
        super::empty(&staging)?;
        let cache_root = match config.storage.build_cache_device() {
            // The root of this machine's file system is not the node's.
            Device::Local => config.state_dir.join("build-cache").display().to_string(),
            Device::S3(_) => "/build-cache".to_owned(),
        };
        Ok(Self(Arc::new(Inner {
            objects,
            caches,
            cache_root,
            staging,
            running: Arc::new(Semaphore::new(builds)),
            waiting: Arc::new(Semaphore::new(
                builds.saturating_add(queue).min(Semaphore::MAX_PERMITS),
            )),
            queue,
        })))
    }

    /// A build to be run in an instance.
    pub fn build(&self, order: Order) -> Arc<ClientBuild> {
        let transcript = Arc::new(Transcript::of_command());
        if order.protocol == Protocol::V2 {
            // It has no log that could be followed.
            transcript.close();
        }
        Arc::new(ClientBuild {
            inner: self.0.clone(),
            order,
            transcript,
            outcome: OnceLock::new(),
            turn: Mutex::default(),
        })
    }
}

/// One build.
#[derive(Debug)]
pub struct ClientBuild {
    inner: Arc<Inner>,
    order: Order,
    transcript: Arc<Transcript>,
    outcome: OnceLock<Outcome>,
    /// There from its turn to its end.
    turn: Mutex<Option<Turn>>,
}

/// A build's places among those that wait and those that run.
type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl ClientBuild {
    /// What came of it, once it has ended well.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }
}

#[async_trait]
impl Setup for ClientBuild {
    fn mounts(&self) -> Vec<Mount> {
        let cache = self.cache_key().map(|_| Mount {
            source: Source::Scratch(cache::FOLDER.into()),
            target: "/cache".into(),
            is_writable: true,
        });
        cache.into_iter().collect()
    }

    async fn admit(&self) -> Result<(), SetupError> {
        let Inner {
            running,
            waiting,
            queue,
            ..
        } = &*self.inner;
        let full = |_| SetupError::QueueFull { queue: *queue };
        let place = waiting.clone().try_acquire_owned().map_err(full)?;
        let turn = running.clone().acquire_owned().await;
        let turn = turn.expect("the semaphore is never closed");
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some((place, turn));
        Ok(())
    }

    fn transcript(&self) -> Arc<Transcript> {
        self.transcript.clone()
    }

    async fn run(&self, site: Site<'_>) -> Result<(), SetupError> {
        let turn = self.turn.lock();
        let _turn = turn.unwrap_or_else(PoisonError::into_inner).take();
        let mut warnings = Vec::new();
        let mut warn = |what: &str, outcome: Result<(), cache::CacheError>| {
            if let Err(error) = outcome {
                warnings.push(self.warning(what, &error));
            }
        };
        let cache = self
            .cache_key()
            .map(|key| (key, site.folder(cache::FOLDER)));
        if let Some((key, folder)) = &cache {
            warn("restore", cache::restore(&self.inner, key, folder).await);
        }
        let mut output = match &self.order.command {
            Some(command) => self.command(command, &site).await?,
            None => Vec::new(),
        };
        if let Some((key, folder)) = &cache {
            warn("store", cache::store(&self.inner, key, folder).await);
        }
        match self.order.protocol {
            Protocol::V2 => output.extend(warnings),
            Protocol::V4 | Protocol::V5 => drop(output.splice(..0, warnings)),
        }
        let artifact = match &self.order.destination {
            Some(destination) => Some(self.artifact(destination, &site.folder(BUILDS)).await?),
            None => None,
        };
        let outcome = Outcome { artifact, output };
        self.outcome.set(outcome).expect("a build runs once");
        Ok(())
    }
}

impl ClientBuild {
    /// A cache serves commands only.
    fn cache_key(&self) -> Option<&CacheKey> {
        self.order
            .command
            .as_ref()
            .and(self.order.cache_key.as_ref())
    }

    /// Runs the command to its end; answers what it wrote.
    async fn command(&self, command: &str, site: &Site<'_>) -> Result<Vec<Part>, SetupError> {
        let is_v2 = self.order.protocol == Protocol::V2;
        let written = if is_v2 {
            Arc::new(Transcript::of_old_command())
        } else {
            self.transcript.clone()
        };
        let work = async {
            let process = site.exec(process(self.order.protocol, command)).await;
            let process = process.map_err(|source| SetupError::Run { source })?;
            Ok(process.run(|_, bytes| written.push(bytes)).await)
        };
        let limit = self.order.timeout.unwrap_or(Duration::MAX);
        let seconds = limit.as_secs();
        let ended = tokio::time::timeout(limit, work).await;
        let code = ended.map_err(|_| SetupError::Timeout { seconds })??;
        if code != 0 {
            let out_of_memory = site.was_out_of_memory(code).await;
            let output = failure(written.text(), code, out_of_memory);
            return Err(SetupError::Failed { output });
        }
        if !is_v2 {
            return Ok(written.parts());
        }
        let content = match written.text() {
            text if text.is_empty() => "Runtime created successfully!".into(),
            text => text,
        };
        let at = SystemTime::now();
        Ok(vec![Part { at, content }])
    }

    /// Stores the archive that the build left.
    async fn artifact(&self, destination: &str, folder: &Path) -> Result<Artifact, SetupError> {
        let lost = |source: ArtifactError| SetupError::Artifact {
            source: source.into(),
        };
        let mut staged = Err(ArtifactError::Missing {
            file: artifact::ARCHIVE,
        });
        let mut ending = "";
        for (file, as_stored) in ARCHIVES {
            match stage(&self.inner, folder, file).await {
                Err(ArtifactError::Missing { .. }) => {}
                found => {
                    (staged, ending) = (found, as_stored);
                    break;
                }
            }
        }
        let staged = staged.map_err(lost)?;
        let name = format!("{}.{ending}", unique());
        let path = self.inner.objects.path(destination, &name);
        let stored = self.inner.objects.store(&staged, &path).await;
        let size_bytes = stored.map_err(|source: ObjectError| SetupError::Store {
            source: source.into(),
        })?;
        Ok(Artifact { path, size_bytes })
    }

    /// The time is that of the log's beginning, since it stands there.
    fn warning(&self, what: &str, error: &cache::CacheError) -> Part {
        let cause = chain(error);
        tracing::warn!(error = cause, "could not {what} a build's cache");
        Part {
            at: self.transcript.began(),
            content: format!("[build cache] Warning: Failed to {what} cache artifact: {cause}\n"),
        }
    }
}

/// The command as it is given, for the shell of its protocol.
fn process(protocol: Protocol, command: &str) -> ProcessSpec {
    let (shell, terminal) = match protocol {
        Protocol::V2 => ("sh", false),
        Protocol::V4 | Protocol::V5 => ("bash", true),
    };
    ProcessSpec {
        command: [shell, "-c", command].map(Into::into).to_vec(),
        terminal,
    }
}

/// What a failed command wrote and how it ended, up to the limit.
fn failure(mut text: String, code: u32, out_of_memory: bool) -> String {
    text.push_str(&format!("Build command exited with code {code}.\n"));
    if out_of_memory {
        text.push_str("A process of it was killed by the memory limit.\n");
    }
    let end = (0..=LIMIT.min(text.len())).rfind(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
    text.trim().to_owned()
}

/// Copies a file of a hostile folder to a private one: a build that goes on does not change it any more.
async fn stage(
    inner: &Inner,
    folder: &Path,
    file: &'static str,
) -> Result<TempPath, ArtifactError> {
    let (folder, staging) = (folder.to_owned(), inner.staging.clone());
    blocking(move || {
        let from = artifact::open(&folder, file, MAX_ARCHIVE_BYTES)?;
        let copy = || {
            let mut to = tempfile::NamedTempFile::new_in(staging)?;
            io::copy(&mut from.take(MAX_ARCHIVE_BYTES), &mut to)?;
            Ok(to.into_temp_path())
        };
        copy().map_err(|source| ArtifactError::Read { file, source })
    })
    .await
}

/// 13 hexadecimal digits of the time, never the same twice: seconds in 8 and microseconds in 5.
fn unique() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let next = |last: u64| Some(now.max(last + 1));
    let last = LAST.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    let micros = now.max(last.expect("the closure always answers") + 1);
    format!("{:08x}{:05x}", micros / 1_000_000, micros % 1_000_000)
}

#[cfg(test)]
mod tests;
