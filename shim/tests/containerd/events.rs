//! containerd's events of tasks, in the order in which they were published.

use std::{sync::Arc, time::Duration};

use containerd_client::{
    events::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused,
        TaskResumed, TaskStart,
    },
    services::v1::{PublishRequest, SubscribeRequest, events_client::EventsClient},
    types::Envelope,
};
use prost_types::Any;
use tokio::{sync::watch, task::JoinHandle, time};
use tonic::{Request, transport::Channel};

use super::node::DEADLINE;

const PROBE: &str = "/opr/probe";

/// One event of a task.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) namespace: String,
    pub(crate) container: String,
    /// As in `exit  0`: the topic, the process where it is not the main one, the status.
    pub(crate) text: String,
}

/// Follows the events of a containerd until it is dropped.
pub(crate) struct Events {
    seen: watch::Receiver<Vec<Event>>,
    tell: Arc<watch::Sender<Vec<Event>>>,
    follower: JoinHandle<()>,
}

impl Events {
    pub(crate) async fn follow(channel: &Channel) -> Self {
        let (tell, seen) = watch::channel(Vec::new());
        let tell = Arc::new(tell);
        let follower = follower(channel, tell.clone()).await;
        Self {
            seen,
            tell,
            follower,
        }
    }

    /// No more of them: each takes time of containerd's and of this process's.
    #[allow(dead_code, reason = "the benchmark uses it")]
    pub(crate) fn stop(&self) {
        self.follower.abort();
    }

    /// The same after a restart of containerd.
    pub(crate) async fn follow_again(&mut self, channel: &Channel) {
        self.follower.abort();
        self.follower = follower(channel, self.tell.clone()).await;
    }

    /// The events of a container, once `is_last` is among them.
    pub(crate) async fn until(&self, namespace: &str, container: &str, last: &str) -> Vec<String> {
        let of = |all: &[Event]| -> Vec<String> {
            let is_own =
                |event: &&Event| event.namespace == namespace && event.container == container;
            let own = all.iter().filter(is_own);
            own.map(|event| event.text.clone()).collect()
        };
        let mut seen = self.seen.clone();
        let wait = seen.wait_for(|all| of(all).iter().any(|text| text.starts_with(last)));
        match time::timeout(DEADLINE, wait).await {
            Ok(all) => of(&all.unwrap()),
            Err(_) => panic!(
                "{container} of {namespace}: no {last:?} in {:?}",
                of(&self.seen.borrow())
            ),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// containerd sends the head of its answer with the first event only, so one is published until it arrives.
async fn follower(channel: &Channel, tell: Arc<watch::Sender<Vec<Event>>>) -> JoinHandle<()> {
    let filters = vec!["topic~=\"^/tasks/\"".into(), format!("topic=={PROBE:?}")];
    let mut client = EventsClient::new(channel.clone());
    let mut publisher = client.clone();
    let subscribe = client.subscribe(SubscribeRequest { filters });
    let probe = async {
        loop {
            let mut request = Request::new(PublishRequest {
                topic: PROBE.into(),
                event: Some(Any {
                    type_url: "opr.Probe".into(),
                    value: Vec::new(),
                }),
            });
            let namespace = "probe".parse().unwrap();
            request
                .metadata_mut()
                .insert("containerd-namespace", namespace);
            publisher.publish(request).await.unwrap();
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    let mut stream = tokio::select! {
        stream = subscribe => stream.unwrap().into_inner(),
        () = probe => unreachable!("it ends with the other"),
    };
    tokio::spawn(async move {
        while let Ok(Some(envelope)) = stream.message().await {
            if let Some(event) = read(&envelope) {
                tell.send_modify(|all| all.push(event));
            }
        }
    })
}

fn read(envelope: &Envelope) -> Option<Event> {
    let topic = envelope.topic.strip_prefix("/tasks/")?;
    let mut body = envelope.event.clone()?;
    body.type_url.insert(0, '/');
    let (container, detail) = match topic {
        "create" => (
            body.to_msg::<TaskCreate>().ok()?.container_id,
            String::new(),
        ),
        "start" => (body.to_msg::<TaskStart>().ok()?.container_id, String::new()),
        "oom" => (body.to_msg::<TaskOom>().ok()?.container_id, String::new()),
        "paused" => (
            body.to_msg::<TaskPaused>().ok()?.container_id,
            String::new(),
        ),
        "resumed" => (
            body.to_msg::<TaskResumed>().ok()?.container_id,
            String::new(),
        ),
        "exec-added" => {
            let event = body.to_msg::<TaskExecAdded>().ok()?;
            (event.container_id, event.exec_id)
        }
        "exec-started" => {
            let event = body.to_msg::<TaskExecStarted>().ok()?;
            (event.container_id, event.exec_id)
        }
        "exit" => {
            let event = body.to_msg::<TaskExit>().ok()?;
            let process = other(&event.container_id, &event.id);
            let detail = format!("{process}{}", event.exit_status);
            (event.container_id, detail)
        }
        "delete" => {
            let event = body.to_msg::<TaskDelete>().ok()?;
            let process = other(&event.container_id, &event.id);
            let detail = format!("{process}{}", event.exit_status);
            (event.container_id, detail)
        }
        _ => return None,
    };
    Some(Event {
        namespace: envelope.namespace.clone(),
        container,
        text: format!("{topic} {detail}").trim_end().to_owned(),
    })
}

fn other(container: &str, process: &str) -> String {
    if process.is_empty() || process == container {
        String::new()
    } else {
        format!("{process} ")
    }
}
