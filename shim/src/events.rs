//! What happened to containers, told to containerd in the order in which it happened.
//!
//! One queue, one sender, one event under way: an event leaves only after containerd has taken the one before.
//! While containerd is away, events wait; beyond `BOUND` the oldest are dropped, since a containerd that comes back
//! asks for the present state anyway.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use containerd_shim::{
    event::Event,
    protos::{
        protobuf::{MessageField, well_known_types::timestamp::Timestamp},
        shim::{event::Envelope, events::ForwardRequest},
        shim_async::{Client, EventsClient},
        ttrpc::{self, context},
    },
    util::convert_to_any,
};
use log::warn;
use tokio::sync::{Notify, watch};

/// How many events wait for containerd at most.
const BOUND: usize = 4096;
/// How long containerd may take for one event.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two attempts to reach containerd.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Tells containerd. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    namespace: String,
    queue: Mutex<VecDeque<Envelope>>,
    added: Notify,
    /// Events that containerd has not taken yet.
    n_pending: watch::Sender<usize>,
}

impl Publisher {
    /// Starts the sender on the present runtime. `address` is containerd's ttrpc socket.
    #[must_use]
    pub fn start(address: &str, namespace: &str) -> Self {
        let shared = Arc::new(Shared {
            namespace: namespace.to_owned(),
            queue: Mutex::default(),
            added: Notify::new(),
            n_pending: watch::Sender::new(0),
        });
        let path = address.strip_prefix("unix://").unwrap_or(address);
        tokio::spawn(send_all(shared.clone(), format!("unix://{path}")));
        Self { shared }
    }

    /// Puts an event behind those that wait.
    pub fn publish(&self, event: impl Event + 'static) {
        let topic = event.topic();
        let event = match convert_to_any(Box::new(event)) {
            Ok(event) => event,
            Err(e) => return warn!("cannot encode the event {topic}: {e}"),
        };
        let envelope = Envelope {
            topic,
            namespace: self.shared.namespace.clone(),
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            event: MessageField::some(event),
            ..Envelope::default()
        };
        let mut queue = self.shared.lock();
        if queue.len() >= BOUND
            && let Some(oldest) = queue.pop_front()
        {
            warn!("dropped the event {}: too many wait", oldest.topic);
            self.shared.n_pending.send_modify(|n| *n -= 1);
        }
        queue.push_back(envelope);
        self.shared.n_pending.send_modify(|n| *n += 1);
        drop(queue);
        self.shared.added.notify_one();
    }

    /// Waits until containerd has taken all, or `bound` is over.
    pub async fn flush(&self, bound: Duration) {
        let mut n_pending = self.shared.n_pending.subscribe();
        let _ = tokio::time::timeout(bound, n_pending.wait_for(|n| *n == 0)).await;
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Envelope>> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    async fn next(&self) -> Envelope {
        loop {
            if let Some(envelope) = self.lock().pop_front() {
                return envelope;
            }
            self.added.notified().await;
        }
    }
}

/// As protobuf has it.
#[must_use]
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}

async fn send_all(shared: Arc<Shared>, address: String) {
    let mut client = None;
    loop {
        let envelope = shared.next().await;
        let topic = envelope.topic.clone();
        let request = ForwardRequest {
            envelope: MessageField::some(envelope),
            ..ForwardRequest::default()
        };
        if let Err(e) = send(&mut client, &address, &request).await {
            warn!("containerd refused the event {topic}: {e}");
        }
        shared.n_pending.send_modify(|n| *n -= 1);
    }
}

/// Tries until containerd answers. Fails only where it answers that it does not want the event.
async fn send(
    client: &mut Option<EventsClient>,
    address: &str,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let mut pause = RETRY.0;
    loop {
        let answer = match client {
            Some(client) => {
                let within = i64::try_from(ANSWER.as_nanos()).expect("ten seconds fit");
                client.forward(context::with_timeout(within), request).await
            }
            None => match Client::connect(address).await {
                Ok(connection) => {
                    *client = Some(EventsClient::new(connection));
                    continue;
                }
                Err(e) => Err(e),
            },
        };
        match answer {
            Ok(_) => return Ok(()),
            Err(e @ ttrpc::Error::RpcStatus(_)) if !is_timeout(&e) => return Err(e),
            Err(_) => *client = None,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

fn is_timeout(error: &ttrpc::Error) -> bool {
    matches!(error, ttrpc::Error::RpcStatus(status)
        if matches!(status.code(), ttrpc::Code::DEADLINE_EXCEEDED | ttrpc::Code::UNAVAILABLE))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use async_trait::async_trait;
    use containerd_shim::{
        api::Empty,
        protos::{
            events::task::TaskStart,
            protobuf::Message,
            shim_async::{Events, create_events},
            ttrpc::r#async::{Server, TtrpcContext},
        },
    };
    use tokio::sync::mpsc;

    use super::*;

    struct Containerd(mpsc::UnboundedSender<u32>);

    #[async_trait]
    impl Events for Containerd {
        async fn forward(
            &self,
            _context: &TtrpcContext,
            request: ForwardRequest,
        ) -> ttrpc::Result<Empty> {
            let event = TaskStart::parse_from_bytes(&request.envelope().event.value).unwrap();
            self.0.send(event.pid).unwrap();
            Ok(Empty::new())
        }
    }

    async fn containerd(socket: &Path) -> (Server, mpsc::UnboundedReceiver<u32>) {
        let _ = std::fs::remove_file(socket);
        let (events, received) = mpsc::unbounded_channel();
        let mut server = Server::new()
            .bind(&format!("unix://{}", socket.display()))
            .unwrap()
            .register_service(create_events(Arc::new(Containerd(events))));
        server.start().await.unwrap();
        (server, received)
    }

    fn start(pid: u32) -> TaskStart {
        TaskStart {
            pid,
            ..TaskStart::default()
        }
    }

    #[tokio::test]
    async fn keeps_the_order_over_a_restart_of_containerd() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("events");
        let publisher = Publisher::start(socket.to_str().unwrap(), "tests");
        (0..10).for_each(|pid| publisher.publish(start(pid)));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (mut server, mut received) = containerd(&socket).await;
        for pid in 0..10 {
            assert_eq!(received.recv().await, Some(pid));
        }
        server.shutdown().await.unwrap();
        (10..20).for_each(|pid| publisher.publish(start(pid)));
        let (_server, mut received) = containerd(&socket).await;
        for pid in 10..20 {
            assert_eq!(received.recv().await, Some(pid));
        }
        publisher.flush(Duration::from_secs(5)).await;
        assert_eq!(*publisher.shared.n_pending.borrow(), 0);
    }

    #[tokio::test]
    async fn drops_the_oldest_beyond_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("events");
        let publisher = Publisher::start(socket.to_str().unwrap(), "tests");
        let n = u32::try_from(BOUND).unwrap() + 5;
        (0..n).for_each(|pid| publisher.publish(start(pid)));
        let (_server, mut received) = containerd(&socket).await;
        assert_eq!(received.recv().await, Some(5));
    }
}
