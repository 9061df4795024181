//! Processes beside a sandbox's main one: added, watched, killed when their owner goes away, removed.

use std::{fs, io, sync::Arc, time::Duration};

use containerd_client::services::v1::ExecProcessRequest;
use oci_spec::runtime as oci;
use prost_types::Any;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{sync::oneshot, time};
use tokio_util::sync::CancellationToken;

use super::{Inner, kernel, lock};
use crate::{
    adapter::{
        EngineError, Process, ProcessSpec,
        process::{KILLED, Stream},
        rootfs::Folders,
        stdio::Stdio,
    },
    id::SandboxId,
};

/// How containerd names the type of a process's part of a runtime spec.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Columns and rows of a terminal that nobody looks at.
const TERMINAL_SIZE: (u64, u64) = (80, 24);
/// Between two questions to an engine that does not answer.
const PAUSE: Duration = Duration::from_millis(200);
/// A process that was killed ends within this, or is stuck in the kernel.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A process of a sandbox that was started.
struct Started {
    sandbox: SandboxId,
    /// Its name in the task.
    name: String,
    pid: u32,
    /// The sandbox's cgroup.
    group: String,
    stdio: Stdio,
}

impl Inner {
    pub(super) async fn exec(
        self: &Arc<Self>,
        id: &SandboxId,
        spec: ProcessSpec,
    ) -> Result<Process, EngineError> {
        // On a task of its own: where the caller goes away, the process is made and dropped.
        let work = tokio::spawn(self.clone().begin(id.clone(), spec));
        work.await
            .unwrap_or_else(|error| Err(refused(error.to_string())))
    }

    async fn begin(
        self: Arc<Self>,
        id: SandboxId,
        spec: ProcessSpec,
    ) -> Result<Process, EngineError> {
        let held = self.held.get(&id);
        let held = held.filter(|held| lock(&held.network).is_some());
        let held = held.ok_or_else(|| refused(format!("sandbox {id} does not run")))?;
        let name = format!("process-{:016x}", rand::random::<u64>());
        let dir = Folders::new(&self.config, &id).dir;
        let stdio = Stdio::of_process(&dir, &name, spec.terminal);
        let (streams, pid) = match self.start_process(&id, &name, &spec, &stdio).await {
            Ok(started) => started,
            Err(error) => {
                self.forget(&id, &name, &stdio).await;
                return Err(error);
            }
        };
        let (told, exit) = oneshot::channel();
        let leash = CancellationToken::new();
        let started = Started {
            sandbox: id,
            name,
            pid,
            group: held.group.clone(),
            stdio,
        };
        tokio::spawn(self.clone().watch(started, told, leash.clone()));
        Ok(Process::new(streams, exit, leash.drop_guard()))
    }

    async fn start_process(
        &self,
        id: &SandboxId,
        name: &str,
        spec: &ProcessSpec,
        stdio: &Stdio,
    ) -> Result<(Vec<Stream>, u32), EngineError> {
        let document = self.client.container_spec(id.as_str()).await?;
        let value = process(&document, spec).map_err(|error| refused(error.to_string()))?;
        let output = |source| kernel("make the output of a process", source);
        stdio.create().map_err(output)?;
        let (receivers, senders) = stdio.open().map_err(output)?;
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let request = ExecProcessRequest {
            container_id: id.to_string(),
            stdin: stdio.stdin.as_deref().map(text).unwrap_or_default(),
            stdout: text(&stdio.stdout),
            stderr: stdio.stderr.as_deref().map(text).unwrap_or_default(),
            terminal: spec.terminal,
            spec: Some(Any {
                type_url: PROCESS_TYPE.into(),
                value,
            }),
            exec_id: name.to_owned(),
        };
        self.client.add_process(request).await?;
        let pid = self.client.start_process(id.as_str(), name).await?;
        drop(senders);
        let streams = receivers.into_iter();
        Ok((
            streams.map(|stream| Box::new(stream) as Stream).collect(),
            pid,
        ))
    }

    /// Tells the end of a process, and removes it once its owner has let go. One that still runs then is killed.
    async fn watch(
        self: Arc<Self>,
        started: Started,
        told: oneshot::Sender<u32>,
        leash: CancellationToken,
    ) {
        let has_ended = tokio::select! {
            code = self.exit(&started) => {
                // Whoever is no longer there does not need to know.
                let _ = told.send(code);
                true
            }
            () = leash.cancelled() => false,
        };
        leash.cancelled().await;
        if !has_ended {
            kill_group(&started);
            let killed = self
                .client
                .kill_process(started.sandbox.as_str(), &started.name);
            if let Err(error) = killed.await {
                tracing::warn!(%error, sandbox = %started.sandbox, "a process was not killed");
            }
            // One that does not end goes with its sandbox.
            let _ = time::timeout(EXIT_TIMEOUT, self.exit(&started)).await;
        }
        self.forget(&started.sandbox, &started.name, &started.stdio)
            .await;
    }

    /// Waits for the end of a process, also while containerd is being restarted.
    async fn exit(&self, started: &Started) -> u32 {
        let Started { sandbox, name, .. } = started;
        loop {
            match self.client.wait_process(sandbox.as_str(), name).await {
                Ok(code) => return code,
                Err(_) if self.held.get(sandbox).is_none() => return KILLED,
                Err(error) => {
                    tracing::debug!(%error, %sandbox, "waiting for a process was interrupted");
                    time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Removes what there is of a process: all of it goes with its sandbox at the latest.
    async fn forget(&self, id: &SandboxId, name: &str, stdio: &Stdio) {
        if let Err(error) = self.client.delete_process(id.as_str(), name).await {
            tracing::debug!(%error, sandbox = %id, "a process was not removed");
        }
        if let Err(error) = stdio.remove() {
            tracing::warn!(%error, sandbox = %id, "the output of a process was not removed");
        }
    }
}

/// The main process's part of a container's spec, with another command.
fn process(document: &[u8], spec: &ProcessSpec) -> serde_json::Result<Vec<u8>> {
    use serde::de::Error as _;
    let document: oci::Spec = serde_json::from_slice(document)?;
    let process = document.process().clone();
    let mut process = process.ok_or_else(|| serde_json::Error::custom("it has no process"))?;
    process.set_args(Some(spec.command.clone()));
    process.set_terminal(Some(spec.terminal));
    if spec.terminal {
        let env = process.env_mut().get_or_insert_default();
        if !env.iter().any(|line| line.starts_with("TERM=")) {
            env.push("TERM=xterm".into());
        }
        let (width, height) = TERMINAL_SIZE;
        let size = oci::BoxBuilder::default().width(width).height(height);
        process.set_console_size(size.build().ok());
    }
    serde_json::to_vec(&process)
}

/// Kills what a process has started with it. Its group has its number, since each begins a session of its own.
fn kill_group(started: &Started) {
    let is_its = fs::read_to_string(format!("/proc/{}/cgroup", started.pid))
        .is_ok_and(|groups| groups.contains(&started.group));
    let pid = i32::try_from(started.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid.filter(|_| is_its) else {
        return;
    };
    match kill_process_group(pid, Signal::KILL).map_err(io::Error::from) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            tracing::warn!(%error, sandbox = %started.sandbox, "a process group was not killed");
        }
        _ => {}
    }
}

fn refused(message: String) -> EngineError {
    EngineError::Refused {
        what: "start a process",
        message,
    }
}
