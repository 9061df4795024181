//! Making an instance: its code and its sandbox at once, then its main process, then its port.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{sync::broadcast::error::RecvError, time};

use super::{
    Executor,
    connection::Connection,
    execution::StartError,
    instance::{Code, InstanceInfo, InstanceSpec, Protocol},
    journal::Stream,
    pool::{Facts, Instance, Made},
    setup::{Creation, Setup, Site},
    source,
    state::{End, Stage},
};
use crate::{
    adapter::{self, Mount, Output, SandboxSpec},
    storage::objects::ObjectError,
};

/// The port of every language server.
pub(super) const PORT: u16 = 3000;
/// Pause between two looks at a port that refuses: short while a person would notice, longer afterwards.
const PROBE_PAUSE: Duration = Duration::from_millis(1);
const LONG_PROBE_PAUSE: Duration = Duration::from_millis(10);
const LONG_PROBE: Duration = Duration::from_secs(2);

/// Where servers have their function.
const FUNCTION_DIR: &str = "/usr/local/server/src/function";

impl Executor {
    /// See [`Executor::create`].
    pub(super) async fn add(
        self: Arc<Self>,
        creation: Creation,
    ) -> Result<InstanceInfo, Arc<StartError>> {
        if self.is_stopping.load(Ordering::SeqCst) {
            return Err(StartError::Stopping.into());
        }
        let Creation {
            spec,
            setup,
            is_removed,
        } = creation;
        let id = spec.id.clone();
        let is_set_up = setup.is_some();
        let mut instance = self.new_instance(&spec);
        if let Some(setup) = &setup {
            instance.transcript = setup.transcript();
        }
        let instance = self.pool.add(instance).map_err(|found| {
            let is_pending = found.stage().is_to_come();
            StartError::Conflict { id, is_pending }
        })?;
        // While it waits for room too: it is made for more than the executions that come meanwhile.
        let _hold = instance.hold(&self.admission);
        self.begin(&instance, spec, setup);
        let mut states = instance.state.subscribe();
        let state = states
            .wait_for(|state| !state.stage().is_to_come())
            .await
            .expect("the instance lives as long as it is borrowed")
            .stage()
            .clone();
        let id = || instance.facts.id.clone();
        match state {
            Stage::Queued | Stage::Restarting | Stage::Pending | Stage::Running | Stage::Ready => {
                let info = instance.info();
                if is_removed {
                    self.end(&instance, End::Deleted);
                    instance.gone.cancelled().await;
                } else if is_set_up {
                    self.label(&instance).await;
                }
                Ok(info)
            }
            Stage::Ended(End::Failed(error)) => Err(error),
            Stage::Ended(End::Exited(exit)) => Err(StartError::Exited { id: id(), exit }.into()),
            Stage::Ended(End::Deleted | End::Evicted) => {
                Err(StartError::Deleted { id: id() }.into())
            }
        }
    }

    /// Makes the sandbox of an instance that was just added to the pool, and cleans up where that fails.
    pub(super) async fn make(
        self: Arc<Self>,
        instance: Arc<Instance>,
        spec: InstanceSpec,
        setup: Option<Arc<dyn Setup>>,
    ) {
        let began = Instant::now();
        // Dropped halfway, the engine undoes what it has begun.
        let made = tokio::select! {
            made = self.make_sandbox(&instance, spec, setup.as_deref()) => made,
            _ = instance.ended() => {
                let id = instance.facts.id.clone();
                Err(StartError::Deleted { id })
            }
        };
        self.settle(instance, made, setup, began).await;
    }

    /// What follows once the main process runs, or does not: its setup, and its port.
    pub(super) async fn settle(
        self: Arc<Self>,
        instance: Arc<Instance>,
        made: Result<Made, StartError>,
        setup: Option<Arc<dyn Setup>>,
        began: Instant,
    ) {
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                self.end(&instance, End::Failed(Arc::new(error)));
                self.bury(instance).await;
                return;
            }
        };
        let phases = made.sandbox.phases;
        for (phase, took) in [
            ("code", made.code),
            ("sandbox", phases.sandbox),
            ("create", phases.create),
            ("start", phases.start),
        ] {
            self.metrics.phase(phase, took);
        }
        let output = made.sandbox.output.clone();
        instance.made.set(made).expect("made once");
        self.follow_output(&instance, output, setup.is_none());
        if let Some(setup) = setup
            && let Err(error) = self.set_up(&instance, &*setup).await
        {
            self.end(&instance, End::Failed(Arc::new(error)));
        }
        let took = began.elapsed();
        instance.took.set(took).expect("made once");
        if instance
            .step(|state| state.started(Instant::now()))
            .is_err()
        {
            self.bury(instance).await;
            return;
        }
        // Nobody may have waited for it.
        self.admission.nudge();
        if let Some(code) = instance.notices.exit.get() {
            self.exited(&instance, *code).await;
        } else if instance.is_awaited() {
            self.probe(&instance);
        }
    }

    /// Runs the setup of an instance whose sandbox was just made, until either ends.
    async fn set_up(
        self: &Arc<Self>,
        instance: &Arc<Instance>,
        setup: &dyn Setup,
    ) -> Result<(), StartError> {
        // Those who wait for the sandbox need not wait for the setup.
        instance.state.send_modify(|_| {});
        if let Some(code) = instance.notices.exit.get() {
            self.exited(instance, *code).await;
        }
        let site = Site {
            adapter: &*self.adapter,
            instance,
        };
        let id = || instance.facts.id.clone();
        let outcome = tokio::select! {
            biased;
            _ = instance.ended() => Err(StartError::Deleted { id: id() }),
            () = self.stopped.cancelled() => Err(StartError::Stopping),
            outcome = setup.run(site) => outcome.map_err(|source| StartError::Setup { id: id(), source }),
        };
        instance.transcript.close();
        outcome
    }

    /// Makes an instance that is set up, and stays, known to later processes.
    async fn label(&self, instance: &Instance) {
        let archive = instance.made.get().and_then(|made| made.source.as_deref());
        let labels = labels(instance, archive);
        if let Err(error) = self.adapter.label(&instance.sandbox_id, labels).await {
            // Somebody may have deleted it just now.
            tracing::warn!(error = %crate::telemetry::chain(&error), sandbox = %instance.sandbox_id, "instance ends with the daemon");
        }
    }

    async fn make_sandbox(
        self: &Arc<Self>,
        instance: &Instance,
        spec: InstanceSpec,
        setup: Option<&dyn Setup>,
    ) -> Result<Made, StartError> {
        let id = spec.id.clone();
        if let Some(setup) = setup {
            tokio::select! {
                // First: what a stop has ended leaves its place to who waits.
                biased;
                () = self.stopped.cancelled() => return Err(StartError::Stopping),
                admitted = setup.admit() => {
                    let id = id.clone();
                    admitted.map_err(|source| StartError::Setup { id, source })?;
                }
            }
        }
        self.let_in(instance).await?;
        let began = Instant::now();
        let source = self
            .source(&spec.code)
            .await
            .map_err(|source| StartError::Code {
                id: id.clone(),
                source,
            })?;
        let archive = source.as_deref();
        let unpacked = match archive {
            // Builds unpack their source elsewhere, and servers of other protocols their code.
            Some(archive) if setup.is_none() && spec.protocol == Protocol::V5 => {
                self.sources.unpacked(archive).await
            }
            _ => None,
        };
        let code = began.elapsed();
        let mut spec = sandbox_spec(instance, spec, archive, &self.config.hostname);
        if let Some(directory) = unpacked {
            spec.mounts.push(Mount {
                source: adapter::Source::Overlay(directory.to_owned()),
                target: FUNCTION_DIR.into(),
                is_writable: true,
            });
            let name = "OPEN_RUNTIMES_CODE_MOUNTED".to_owned();
            spec.env.push((name, "true".to_owned()));
        }
        if let Some(setup) = setup {
            spec.mounts.extend(setup.mounts());
            // Half set up, it is nothing that a later process could go on with: see `label`.
            spec.labels.clear();
        }
        let sandbox = self
            .adapter
            .create(spec)
            .await
            .map_err(|source| StartError::Sandbox { id, source })?;
        Ok(Made::new(sandbox, source, code))
    }

    /// The archive that the instance gets.
    async fn source(&self, code: &Code) -> Result<Option<Arc<source::Source>>, ObjectError> {
        match code {
            Code::None => Ok(None),
            Code::Archive(path) => self.sources.get(path).await.map(Some),
            Code::Unpacked(dir) => {
                let path = dir.display().to_string();
                match tokio::fs::metadata(dir).await {
                    Ok(meta) if meta.is_dir() => Ok(None),
                    Ok(_) => Err(ObjectError::Kind { path }),
                    Err(_) => Err(ObjectError::Missing { path }),
                }
            }
        }
    }

    /// Looks for the instance's port to accept, unless somebody does already.
    pub(super) fn probe(self: &Arc<Self>, instance: &Arc<Instance>) {
        if !instance.is_probing.swap(true, Ordering::SeqCst) {
            let (executor, instance) = (self.clone(), instance.clone());
            self.tasks.spawn(async move {
                tokio::select! {
                    () = executor.wait_for_port(&instance) => {}
                    _ = instance.ended() => {}
                }
                instance.is_probing.store(false, Ordering::SeqCst);
                // An execution that came just now saw somebody looking.
                if instance.is_awaited() {
                    executor.probe(&instance);
                }
            });
        }
    }

    /// Ends when the port accepts, or when no execution waits for it any more.
    async fn wait_for_port(&self, instance: &Instance) {
        let began = Instant::now();
        let started = instance.made.get().map_or(began, |made| made.started);
        while instance.state.borrow().n_executions() > 0 {
            if let Ok(stream) = self.adapter.dial(&instance.sandbox_id, PORT).await {
                let boot = started.elapsed();
                if let Ok(connection) = Connection::new(stream).await {
                    instance.connections.put(connection);
                }
                if instance.step(|state| state.listening()).is_ok()
                    && instance.boot.set(boot).is_ok()
                {
                    self.metrics.phase("boot", boot);
                }
                return;
            }
            let is_long = began.elapsed() > LONG_PROBE;
            time::sleep(if is_long {
                LONG_PROBE_PAUSE
            } else {
                PROBE_PAUSE
            })
            .await;
        }
    }

    /// Copies what the main process writes into the journal, and where that is the instance's `is_transcript`, until
    /// it ends.
    pub(super) fn follow_output(
        &self,
        instance: &Instance,
        output: Arc<Output>,
        is_transcript: bool,
    ) {
        let journal = self.journal.clone();
        let transcript = is_transcript.then(|| instance.transcript.clone());
        let name = instance.facts.journal_name().to_owned();
        let write = move |chunk: &[u8]| {
            journal.write(&name, Stream::Output, chunk);
            if let Some(transcript) = &transcript {
                transcript.push(chunk);
            }
        };
        self.background(async move {
            let (held, mut feed) = output.follow();
            write(&held);
            while !output.is_closed() {
                match feed.recv().await {
                    Ok(chunk) => write(&chunk),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    /// Removes what is left of an instance that has ended.
    pub(super) async fn bury(&self, instance: Arc<Instance>) {
        debug_assert!(matches!(instance.stage(), Stage::Ended(_)));
        let id = &instance.sandbox_id;
        if let Err(error) = self.adapter.delete(id).await {
            tracing::error!(error = %crate::telemetry::chain(&error), sandbox = %id, "sandbox was not deleted");
        }
        self.forget(&instance);
    }

    /// An instance is no longer this process's.
    pub(super) fn forget(&self, instance: &Arc<Instance>) {
        self.pool.remove(instance);
        drop(instance.take_reservation());
        self.metrics.instances.dec();
        instance.gone.cancel();
    }
}

fn sandbox_spec(
    instance: &Instance,
    spec: InstanceSpec,
    archive: Option<&source::Source>,
    host: &str,
) -> SandboxSpec {
    SandboxSpec {
        id: instance.sandbox_id.clone(),
        env: environment(&spec, &instance.facts, host),
        mounts: mounts(&spec, archive),
        class: spec.class,
        image: spec.image,
        hostname: instance.facts.hostname.clone(),
        command: spec.command,
        working_dir: (spec.protocol == Protocol::V2).then(|| "/usr/code".into()),
        limits: spec.limits,
        terminal: false,
        labels: labels(instance, archive),
    }
}

/// What a later process knows an instance by.
fn labels(instance: &Instance, archive: Option<&source::Source>) -> BTreeMap<String, String> {
    let mut labels = instance.facts.labels();
    labels.extend(archive.map(source::Source::label));
    labels
}

/// The function's variables, then the protocol's own, which win.
fn environment(spec: &InstanceSpec, facts: &Facts, host: &str) -> Vec<(String, String)> {
    let own = match spec.protocol {
        Protocol::V2 => vec![
            ("INTERNAL_RUNTIME_KEY", facts.key.clone()),
            ("INTERNAL_RUNTIME_ENTRYPOINT", spec.entrypoint.clone()),
            ("INERNAL_EXECUTOR_HOSTNAME", host.to_owned()),
        ],
        Protocol::V4 | Protocol::V5 => vec![
            ("OPEN_RUNTIMES_SECRET", facts.key.clone()),
            ("OPEN_RUNTIMES_ENTRYPOINT", spec.entrypoint.clone()),
            ("OPEN_RUNTIMES_HOSTNAME", host.to_owned()),
            ("OPEN_RUNTIMES_CPUS", spec.limits.cpus.to_string()),
            (
                "OPEN_RUNTIMES_MEMORY",
                (spec.limits.memory_bytes / 1_000_000).to_string(),
            ),
        ],
    };
    let code_path = match (&spec.code, spec.protocol) {
        (Code::Archive(path), Protocol::V4 | Protocol::V5) => {
            Some(("OPEN_RUNTIMES_CODE_PATH", code_path(path).to_owned()))
        }
        (Code::Archive(_), Protocol::V2) | (Code::None | Code::Unpacked(_), _) => None,
    };
    let variables = spec.variables.clone().into_iter();
    let own = own.into_iter().chain(code_path);
    let own = own.chain([("CI", "true".to_owned())]);
    variables
        .chain(own.map(|(name, value)| (name.to_owned(), value)))
        .collect()
}

fn mounts(spec: &InstanceSpec, archive: Option<&source::Source>) -> Vec<Mount> {
    let scratch = |name: &str, target: &str| Mount {
        source: adapter::Source::Scratch(name.into()),
        target: target.into(),
        is_writable: true,
    };
    let read_only = |path: &Path, target: &str| Mount {
        source: adapter::Source::Host(path.to_owned()),
        target: target.into(),
        is_writable: false,
    };
    let mut mounts = vec![scratch("tmp", "/tmp")];
    if spec.protocol == Protocol::V5 {
        mounts.push(scratch("logs", "/mnt/logs"));
    }
    if let (Protocol::V5, Code::Archive(_) | Code::None) = (spec.protocol, &spec.code) {
        mounts.push(scratch("logging", "/tmp/logging"));
    }
    match (&spec.code, archive) {
        (Code::Unpacked(dir), _) => {
            mounts.push(read_only(dir, FUNCTION_DIR));
        }
        (Code::Archive(path), Some(archive)) => {
            mounts.push(read_only(&archive.path, code_path(path)));
            mounts.push(builds(spec.protocol));
        }
        (Code::None, _) | (Code::Archive(_), None) => mounts.push(builds(spec.protocol)),
    }
    mounts
}

/// Where the instance sees the archive of this name: the ending tells its format where it is no compressed tar file.
fn code_path(path: &str) -> &'static str {
    match path.rsplit_once('.') {
        Some((_, "tar")) => "/tmp/code.tar",
        Some((_, "sqfs")) => "/tmp/code.sqfs",
        Some((_, "erofs")) => "/tmp/code.erofs",
        _ => "/tmp/code.tar.gz",
    }
}

/// Where a client's own start command unpacks the code.
fn builds(protocol: Protocol) -> Mount {
    let target = match protocol {
        Protocol::V2 => "/usr/code",
        Protocol::V4 | Protocol::V5 => "/mnt/code",
    };
    Mount {
        source: adapter::Source::Scratch("builds".into()),
        target: target.into(),
        is_writable: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_keeps_the_endings_that_tell_its_format() {
        for (path, expected) in [
            ("/a/code.tar.gz", "/tmp/code.tar.gz"),
            ("bucket/a/64f0.gz", "/tmp/code.tar.gz"),
            ("/a/code.zip", "/tmp/code.tar.gz"),
            ("/a/code", "/tmp/code.tar.gz"),
            ("/a/x.tar", "/tmp/code.tar"),
            ("/a/x.sqfs", "/tmp/code.sqfs"),
            ("/a/x.erofs", "/tmp/code.erofs"),
        ] {
            assert_eq!(code_path(path), expected, "{path}");
        }
    }
}
