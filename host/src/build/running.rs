//! One build from its request to its end.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{
    BuildError, BuildEvent, Deployment, Inner, MAX_ARCHIVE_BYTES, TIMEOUT, WAITING, artifact,
    blocking, cache, log::Log, recipe,
};
use crate::{
    config::Classes,
    executor::{
        execution::{Exit, StartError},
        job::Job,
    },
    function::{Function, Runtime, metadata},
    id::FunctionName,
    telemetry::chain,
};

/// How long the last output may take to arrive once the build has ended.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// A build that was asked for, with what it needs.
struct Plan {
    function: Function,
    runtime: Arc<Runtime>,
    command: Option<String>,
    /// The private copy of the source; its folder goes away with the plan.
    source: PathBuf,
    _folder: TempDir,
    progress: mpsc::Sender<BuildEvent>,
}

impl Inner {
    /// See [`super::Builds::deploy`].
    pub(super) async fn deploy(
        &self,
        deployment: Deployment,
        progress: mpsc::Sender<BuildEvent>,
    ) -> Result<Arc<Function>, BuildError> {
        let n_waiting = WAITING;
        let waiting = self.waiting.try_acquire();
        let _waiting = waiting.map_err(|_| BuildError::QueueFull { n_waiting })?;
        let runtime = self.parts.catalog.find(&deployment.function.runtime)?;
        let function = check(deployment.function, &runtime, &self.parts.classes)?;
        let (_folder, source) = self.copy(deployment.source).await?;
        let plan = Plan {
            function,
            runtime,
            command: deployment.command,
            source,
            _folder,
            progress,
        };
        let id = self.parts.store.queue_build(&plan.function.name).await?;
        let mut log = Log::default();
        let outcome = tokio::select! {
            outcome = self.build(id, &plan, &mut log) => outcome,
            () = self.stop.cancelled() => Err(BuildError::Stopping),
        };
        let name = &plan.function.name;
        match outcome {
            Ok(function) => {
                tracing::info!(function = %name, build = id, "built a function");
                Ok(function)
            }
            Err(error) => {
                let message = chain(&error);
                tracing::warn!(function = %name, build = id, error = message, "could not build a function");
                let recorded = self.parts.store.fail_build(id, message, log.finish());
                if let Err(error) = recorded.await {
                    tracing::error!(function = %name, build = id, error = chain(&error), "could not record a build");
                }
                Err(error)
            }
        }
    }

    /// Waits for its turn, builds, and makes the outcome the active function.
    async fn build(
        &self,
        id: i64,
        plan: &Plan,
        log: &mut Log,
    ) -> Result<Arc<Function>, BuildError> {
        let name = &plan.function.name;
        let turn = async {
            let turn = self.turns.take(name).await;
            let permit = self.running.acquire().await;
            (turn, permit.expect("the semaphore is never closed"))
        };
        tokio::pin!(turn);
        let _turn = tokio::select! {
            biased;
            turn = &mut turn => turn,
            () = std::future::ready(()) => {
                let _ = plan.progress.try_send(BuildEvent::Queued);
                turn.await
            }
        };
        self.parts.store.start_build(id).await?;
        let _ = plan.progress.try_send(BuildEvent::Started { build: id });
        let job = self.run(id, plan, log).await?;
        self.keep_cache(name, &job).await;
        // Nothing is cleaned away until the function refers to its artifact.
        let _kept = self.cleaning.hold().await;
        let folder = job.scratch.join(recipe::CODE);
        let storage = self.parts.storage.clone();
        let (artifact, size_bytes) = blocking(move || -> Result<_, BuildError> {
            let file = artifact::open(&folder, artifact::ARCHIVE, MAX_ARCHIVE_BYTES)?;
            Ok(storage.put(file, MAX_ARCHIVE_BYTES)?)
        })
        .await?;
        job.delete().await;
        let _ = plan.progress.try_send(BuildEvent::Stored {
            artifact: artifact.clone(),
            size_bytes,
        });
        let mut function = plan.function.clone();
        function.artifact = Some(artifact.clone());
        let path = self.parts.storage.path(&artifact);
        let code = self.parts.code.ensure(&artifact, &path).await?;
        find_entrypoint(code, function.entrypoint.clone()).await?;
        let (function, previous) = (Arc::new(function), self.parts.store.get(name));
        let stored = self
            .parts
            .store
            .succeed_build(id, function.clone(), size_bytes, log.finish());
        stored.await?;
        if let Some(previous) = previous
            && self.instance_id(&previous) != self.instance_id(&function)
        {
            self.retire(&previous);
        }
        Ok(function)
    }

    /// Runs the build's sandbox to its end. Where it fails, dropping it deletes it.
    async fn run(&self, id: i64, plan: &Plan, log: &mut Log) -> Result<Job, BuildError> {
        let name = || plan.function.name.clone();
        let cache = self.caches.get(&plan.function.name);
        let inputs = recipe::Inputs {
            source: &plan.source,
            cache: cache.as_deref(),
        };
        let spec = recipe::job(
            id,
            &plan.function,
            &plan.runtime,
            plan.command.as_deref(),
            inputs,
        );
        let work = async {
            let mut job = self.parts.executor.run(spec).await?;
            let exit = {
                let follow = log.follow(job.output.clone(), plan.progress.clone());
                wait(&mut job, follow).await
            };
            Ok::<_, StartError>((job, exit))
        };
        let Ok(ended) = tokio::time::timeout(TIMEOUT, work).await else {
            return Err(BuildError::Timeout {
                function: name(),
                seconds: TIMEOUT.as_secs(),
            });
        };
        let (job, mut exit) = ended.map_err(|source| BuildError::Start {
            function: name(),
            source,
        })?;
        if exit.code != 0 {
            job.delete().await;
            exit.output = log.end();
            return Err(BuildError::Failed {
                function: name(),
                exit,
            });
        }
        Ok(job)
    }

    /// A cache that cannot be kept is no reason to fail: the next build has the one before.
    async fn keep_cache(&self, name: &FunctionName, job: &Job) {
        let (caches, folder) = (self.caches.clone(), job.scratch.join(cache::FOLDER));
        let function = name.clone();
        let kept = blocking(move || caches.keep(&function, &folder)).await;
        if let Err(error) = kept {
            tracing::warn!(function = %name, error = chain(&error), "could not keep a build's cache");
        }
    }

    /// A copy that nobody changes while the build reads it, and that the sandbox's ids may read.
    async fn copy(&self, source: PathBuf) -> Result<(TempDir, PathBuf), BuildError> {
        let sources = self.sources.clone();
        blocking(move || {
            copy(&source, &sources).map_err(|error| BuildError::Source {
                path: source,
                source: error,
            })
        })
        .await
    }
}

/// Waits for the end of a job and of its output.
async fn wait(job: &mut Job, follow: impl Future<Output = ()>) -> Exit {
    tokio::pin!(follow);
    let mut is_followed = false;
    let exit = {
        let end = job.wait();
        tokio::pin!(end);
        loop {
            tokio::select! {
                exit = &mut end => break exit,
                () = &mut follow, if !is_followed => is_followed = true,
            }
        }
    };
    if !is_followed {
        // A process that it left behind may hold the terminal open.
        let _ = tokio::time::timeout(LAST_OUTPUT, follow).await;
    }
    exit
}

/// The function as it will be recorded, or what is wrong with it.
fn check(
    mut function: Function,
    runtime: &Runtime,
    classes: &Classes,
) -> Result<Function, BuildError> {
    let wrong = |what, value: &str, why| {
        let value = value.to_owned();
        Err(BuildError::Value { what, value, why })
    };
    // With its version, so that a later default is not another runtime for it.
    function.runtime.clone_from(&runtime.name);
    function.artifact = None;
    if function.entrypoint.is_empty() {
        function.entrypoint.clone_from(&runtime.entrypoint);
    }
    let entrypoint = &function.entrypoint;
    let is_inside = !entrypoint.starts_with('/') && entrypoint.split('/').all(|part| part != "..");
    if !is_inside || entrypoint.contains(['\0', '\n']) {
        return wrong(
            "entrypoint",
            entrypoint,
            "it must be a path within the code",
        );
    }
    if classes.get(&function.class).is_none() {
        let known = classes.all().keys().map(ToString::to_string).collect();
        let class = function.class;
        return Err(BuildError::Class { class, known });
    }
    for (name, value) in &function.variables {
        if !metadata::is_variable(name) {
            return wrong(
                "variable",
                name,
                "it must be letters, digits and _, no digit first",
            );
        }
        if value.contains('\0') {
            return wrong("variable", name, "its value holds a NUL");
        }
    }
    let cpus = function.limits.cpus;
    if !cpus.is_finite() || cpus < 0.0 {
        return wrong("cpus", &cpus.to_string(), "it must be 0 or more");
    }
    if function.timeout.is_zero() {
        return wrong("timeout", "0", "it must be 1 s or more");
    }
    Ok(function)
}

fn copy(source: &Path, sources: &Path) -> io::Result<(TempDir, PathBuf)> {
    let from = File::open(source)?;
    let meta = from.metadata()?;
    if !meta.is_file() || meta.len() > MAX_ARCHIVE_BYTES {
        return Err(io::Error::other(format!(
            "it is no file of at most {MAX_ARCHIVE_BYTES} bytes"
        )));
    }
    let folder = TempDir::new_in(sources)?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
    let path = folder.path().join("source.tar.gz");
    let mut to = File::create_new(&path)?;
    to.set_permissions(fs::Permissions::from_mode(0o644))?;
    io::copy(&mut from.take(MAX_ARCHIVE_BYTES), &mut to)?;
    Ok((folder, path))
}

/// Checks that what the server will load is there.
async fn find_entrypoint(code: PathBuf, entrypoint: String) -> Result<(), BuildError> {
    let found = blocking(move || {
        let noted = metadata::read(&code)?;
        let noted = noted.get(crate::function::ENTRYPOINT);
        let entrypoint = noted.filter(|file| !file.is_empty()).unwrap_or(&entrypoint);
        let is_there = artifact::has_entrypoint(&code, entrypoint)?;
        Ok((is_there, entrypoint.clone(), artifact::names(&code)))
    });
    let outcome: io::Result<_> = found.await;
    let (is_there, entrypoint, found) =
        outcome.map_err(|source| artifact::ArtifactError::Read {
            file: artifact::ARCHIVE,
            source,
        })?;
    if is_there {
        Ok(())
    } else {
        Err(BuildError::Entrypoint { entrypoint, found })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{
        config::Config,
        function::{Catalog, tests::function},
        id::ClassName,
    };

    fn checked(change: impl FnOnce(&mut Function)) -> Result<Function, String> {
        let runtime = Catalog::load(None).unwrap().find("node").unwrap();
        let mut function = function("hello");
        change(&mut function);
        let classes = Classes::new(Config::default().class);
        check(function, &runtime, &classes).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_deployment_leaves_open_is_the_runtimes() {
        let function = checked(|f| {
            f.runtime = "node".into();
            f.entrypoint = String::new();
        });
        let function = function.unwrap();
        assert_eq!(function.runtime, "node-22");
        assert_eq!(function.entrypoint, "index.js");
        assert_eq!(function.artifact, None);
    }

    #[test]
    fn a_value_that_cannot_be_used_is_named() {
        #[track_caller]
        fn refuses(change: impl FnOnce(&mut Function), expected: &str) {
            assert_eq!(checked(change).unwrap_err(), expected);
        }
        const ENTRYPOINT: &str = "cannot be used: it must be a path within the code";
        refuses(
            |f| f.entrypoint = "../a.js".into(),
            &format!("entrypoint \"../a.js\" {ENTRYPOINT}"),
        );
        refuses(
            |f| f.entrypoint = "/a.js".into(),
            &format!("entrypoint \"/a.js\" {ENTRYPOINT}"),
        );
        refuses(
            |f| f.class = ClassName::try_new("gpu").unwrap(),
            "there is no class gpu; the settings have build, function, runtime",
        );
        refuses(
            |f| drop(f.variables.insert("A=B".into(), String::new())),
            "variable \"A=B\" cannot be used: it must be letters, digits and _, no digit first",
        );
        refuses(
            |f| drop(f.variables.insert("A".into(), "\0".into())),
            "variable \"A\" cannot be used: its value holds a NUL",
        );
        refuses(
            |f| f.limits.cpus = f64::NAN,
            "cpus \"NaN\" cannot be used: it must be 0 or more",
        );
        refuses(
            |f| f.timeout = Duration::ZERO,
            "timeout \"0\" cannot be used: it must be 1 s or more",
        );
    }

    #[test]
    fn the_source_is_copied_for_the_sandbox_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::write(&source, "content").unwrap();
        let (folder, path) = copy(&source, dir.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        drop(folder);
        assert!(!path.exists());
        assert!(copy(dir.path(), dir.path()).is_err());
    }

    #[tokio::test]
    async fn a_missing_entrypoint_shows_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("main.js"), "").unwrap();
        let find = |name: &str| find_entrypoint(dir.path().to_owned(), name.to_owned());
        find("main.js").await.unwrap();
        assert_eq!(
            find("index.js").await.unwrap_err().to_string(),
            "missing entrypoint \"index.js\": the build made main.js"
        );
        let noted = "OPEN_RUNTIMES_ENTRYPOINT=main.js\n";
        fs::write(dir.path().join(metadata::FILE), noted).unwrap();
        find("index.js").await.unwrap();
    }
}
