//! Commands that end by themselves, in sandboxes of their own: builds.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use tokio::sync::watch;

use super::{Executor, REASON_PATIENCE, execution::Exit, execution::StartError, sandbox_id};
use crate::{
    adapter::{Event, Mount, Output, SandboxSpec},
    config::Limits,
    id::{ClassName, InstanceId, SandboxId},
};

/// What a job needs.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Its name, for messages and the sandbox.
    pub id: InstanceId,
    /// Class of its sandbox.
    pub class: ClassName,
    /// Its image.
    pub image: opr_images::Reference,
    /// The command.
    pub command: Vec<String>,
    /// Its environment on top of the image's.
    pub env: Vec<(String, String)>,
    /// What it sees of the host, and where it may write.
    pub mounts: Vec<Mount>,
    /// Limits of its sandbox.
    pub limits: Limits,
}

/// A running job. Dropping it deletes the sandbox and all that was not taken out of it.
#[derive(Debug)]
pub struct Job {
    /// What it writes to its terminal: LF is CR LF there.
    pub output: Arc<Output>,
    /// The host's path of the folders that it may write to. Hostile: open beneath it only.
    pub scratch: PathBuf,
    sandbox: Lease,
    notice: Arc<Notice>,
}

/// What the engine told of a job.
#[derive(Debug, Default)]
pub(super) struct Notice {
    exit: watch::Sender<Option<u32>>,
    out_of_memory: watch::Sender<bool>,
}

impl Notice {
    pub(super) fn note(&self, event: &Event) {
        match event {
            Event::Exited { code, .. } => drop(self.exit.send_replace(Some(*code))),
            Event::OutOfMemory { .. } => drop(self.out_of_memory.send_replace(true)),
        }
    }
}

/// Deletes a job's sandbox when dropped.
#[derive(Debug)]
struct Lease {
    executor: Arc<Executor>,
    id: SandboxId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (executor, id) = (self.executor.clone(), self.id.clone());
        let tasks = executor.tasks.clone();
        tasks.spawn(async move { executor.delete_job(&id).await });
    }
}

impl Executor {
    /// Starts a command that ends by itself, in a sandbox of its own.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn run(self: &Arc<Self>, spec: JobSpec) -> Result<Job, StartError> {
        let id = sandbox_id(&spec.id);
        let notice = Arc::<Notice>::default();
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), notice.clone());
        let sandbox = Lease {
            executor: self.clone(),
            id: id.clone(),
        };
        let made = self.adapter.create(SandboxSpec {
            id,
            class: spec.class,
            image: spec.image,
            hostname: spec.id.to_string(),
            command: Some(spec.command),
            env: spec.env,
            working_dir: None,
            mounts: spec.mounts,
            limits: spec.limits,
            terminal: true,
            labels: BTreeMap::new(),
        });
        let made = made.await.map_err(|source| StartError::Sandbox {
            id: spec.id,
            source,
        })?;
        Ok(Job {
            output: made.output,
            scratch: made.scratch,
            sandbox,
            notice,
        })
    }

    pub(super) fn job_notice(&self, id: &SandboxId) -> Option<Arc<Notice>> {
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    async fn delete_job(&self, id: &SandboxId) {
        if let Err(error) = self.adapter.delete(id).await {
            tracing::error!(error = %crate::telemetry::chain(&error), sandbox = %id, "job's sandbox was not deleted");
        }
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

impl Job {
    /// Waits for its end. The exit shows no output: that is in [`Job::output`].
    pub async fn wait(&mut self) -> Exit {
        let mut exit = self.notice.exit.subscribe();
        let code = exit.wait_for(Option::is_some).await;
        let code = code.expect("the sender is borrowed").unwrap_or_default();
        let mut out_of_memory = self.notice.out_of_memory.subscribe();
        let killed = 128 + 9;
        if code == killed {
            // The word of the reason may come after that of the exit.
            let word = out_of_memory.wait_for(|is_so| *is_so);
            let _ = tokio::time::timeout(REASON_PATIENCE, word).await;
        }
        Exit {
            code,
            out_of_memory: *out_of_memory.borrow(),
            output: String::new(),
        }
    }

    /// Deletes its sandbox and waits until it is gone.
    pub async fn delete(self) {
        self.sandbox.executor.delete_job(&self.sandbox.id).await;
    }
}
