//! What containerd tells of tasks: exits and kills for want of memory.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use containerd_client::{
    events::{TaskExit, TaskOom},
    services::v1::{PublishRequest, SubscribeRequest, events_client::EventsClient},
    types::{Envelope, v1::Status},
};
use prost_types::Any;
use tokio::{sync::watch, time};

use super::{EngineError, client::Client, process::KILLED};
use crate::id::SandboxId;

/// Published by the host to itself: containerd sends the head of its answer with the first event only.
const PROBE: &str = "/opr/probe";
const PROBE_PAUSE: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(200);

/// Which sandboxes are known, and who is told what becomes of them.
pub(super) trait Known: Send + Sync + 'static {
    /// The sandboxes whose exit was not told yet.
    fn running(&self) -> BTreeSet<SandboxId>;
    /// A sandbox ended. The same may be said more than once.
    fn exited(self: &Arc<Self>, id: SandboxId, code: u32);
    /// The kernel killed a process of a sandbox for want of memory.
    fn out_of_memory(&self, id: SandboxId);
}

/// Follows containerd's events for the life of the process, from one connection to the next.
pub(super) struct Watch<K> {
    pub(super) client: Client,
    pub(super) known: Arc<K>,
    /// Whether events arrive now.
    pub(super) is_live: watch::Sender<bool>,
}

impl<K: Known> Watch<K> {
    pub(super) async fn run(self) {
        loop {
            if let Err(error) = self.follow().await {
                tracing::warn!(error = %error.message(), "containerd's events were interrupted");
            }
            self.is_live.send_replace(false);
            time::sleep(PAUSE).await;
        }
    }

    async fn follow(&self) -> Result<(), tonic::Status> {
        let namespace = self.client.namespace.to_str().unwrap_or_default();
        let filters = ["/tasks/exit", "/tasks/oom", PROBE]
            .map(|topic| format!("namespace=={namespace:?},topic=={topic:?}"))
            .to_vec();
        let mut client = EventsClient::new(self.client.channel.clone());
        let subscribe = client.subscribe(SubscribeRequest { filters });
        let mut stream = tokio::select! {
            stream = subscribe => stream?.into_inner(),
            error = self.probe() => return Err(error),
        };
        if let Err(error) = self.catch_up().await {
            return Err(tonic::Status::unavailable(error.to_string()));
        }
        self.is_live.send_replace(true);
        while let Some(envelope) = stream.message().await? {
            self.tell(envelope);
        }
        Ok(())
    }

    /// Publishes probes until dropped, or one fails.
    async fn probe(&self) -> tonic::Status {
        let mut client = EventsClient::new(self.client.channel.clone());
        loop {
            let event = Some(Any {
                type_url: "opr.Probe".into(),
                value: Vec::new(),
            });
            let probe = PublishRequest {
                topic: PROBE.into(),
                event,
            };
            if let Err(status) = client.publish(self.client.request(probe)).await {
                return status;
            }
            time::sleep(PROBE_PAUSE).await;
        }
    }

    /// Tells the exits that were missed while nobody listened.
    async fn catch_up(&self) -> Result<(), EngineError> {
        // Asked for before the tasks: a sandbox made in between is not missed, just not known yet.
        let running = self.known.running();
        let tasks = self.client.tasks_here().await?;
        for id in running {
            match tasks.get(id.as_str()) {
                Some(task) if task.status() == Status::Stopped => {
                    self.known.exited(id, task.exit_status)
                }
                Some(_) => {}
                // containerd no longer knows the task: its shim was killed.
                None => self.known.exited(id, KILLED),
            }
        }
        Ok(())
    }

    fn tell(&self, envelope: Envelope) {
        let Some(mut event) = envelope.event else {
            return;
        };
        if !event.type_url.contains('/') {
            event.type_url.insert(0, '/');
        }
        match envelope.topic.as_str() {
            "/tasks/exit" => match event.to_msg::<TaskExit>() {
                // Other processes of the sandbox have a name of their own.
                Ok(exit) if exit.id == exit.container_id => {
                    if let Ok(id) = SandboxId::try_new(exit.container_id) {
                        self.known.exited(id, exit.exit_status);
                    }
                }
                _ => {}
            },
            "/tasks/oom" => {
                let id = event.to_msg::<TaskOom>().ok().map(|oom| oom.container_id);
                if let Some(id) = id.and_then(|id| SandboxId::try_new(id).ok()) {
                    self.known.out_of_memory(id);
                }
            }
            _ => {}
        }
    }
}
