//! The sandboxes that this process knows, and what is told of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OnceCell, broadcast},
    time,
};

use super::lock;
use crate::{
    adapter::{Event, cgroup, events::Known, stdio::Reader},
    id::SandboxId,
};

/// How long the word of an exit waits for the end of the output. It is there already as a rule.
const OUTPUT_LIMIT: Duration = Duration::from_millis(500);

/// The sandboxes that this process knows.
#[derive(Debug)]
pub(super) struct Table {
    held: Mutex<HashMap<SandboxId, Arc<Held>>>,
    pub(super) events: broadcast::Sender<Event>,
}

/// What is known of one sandbox.
#[derive(Debug)]
pub(super) struct Held {
    /// Its cgroup.
    pub(super) group: String,
    /// Held while the sandbox is made or removed: one of them at a time.
    pub(super) gate: tokio::sync::Mutex<()>,
    /// `None` until the sandbox runs; its network is `None` for outbound `host`.
    pub(super) network: Mutex<Option<Option<Arc<OwnedFd>>>>,
    pub(super) slot: Mutex<Option<u32>>,
    /// What reads its output. It goes with the sandbox.
    pub(super) reader: Mutex<Option<Reader>>,
    pub(super) has_started: AtomicBool,
    /// Whether a kill for want of memory was told.
    is_short: AtomicBool,
    /// Set once the exit was told; another for each main process.
    exit: Mutex<Arc<OnceCell<()>>>,
    /// As in its description, and those that were added.
    pub(super) labels: Mutex<BTreeMap<String, String>>,
    pub(super) terminal: bool,
}

impl Table {
    pub(super) fn new(events: broadcast::Sender<Event>) -> Self {
        Self {
            held: Mutex::default(),
            events,
        }
    }

    pub(super) fn get(&self, id: &SandboxId) -> Option<Arc<Held>> {
        lock(&self.held).get(id).cloned()
    }

    pub(super) fn ids(&self) -> Vec<SandboxId> {
        lock(&self.held).keys().cloned().collect()
    }

    /// Says whether the place was free.
    pub(super) fn insert(&self, id: &SandboxId, held: &Arc<Held>) -> bool {
        let mut table = lock(&self.held);
        let is_free = !table.contains_key(id);
        if is_free {
            table.insert(id.clone(), held.clone());
        }
        is_free
    }

    pub(super) fn remove(&self, id: &SandboxId) {
        lock(&self.held).remove(id);
    }

    /// Tells an exit once, after the sandbox's last words and after its want of memory.
    /// Returns when it was told, whoever came first.
    pub(super) async fn tell_exit(&self, id: &SandboxId, held: &Held, code: u32) {
        let tell = async || {
            let output = lock(&held.reader)
                .as_ref()
                .map(|reader| reader.output.clone());
            if let Some(output) = output {
                // A process that left the sandbox's own group may hold the output for longer.
                let _ = time::timeout(OUTPUT_LIMIT, output.ended()).await;
            }
            // The engine's own word of it comes by another way, and may be late or lost.
            if cgroup::has_run_out_of_memory(&held.group)
                && !held.is_short.swap(true, Ordering::SeqCst)
            {
                self.tell(Event::OutOfMemory { id: id.clone() });
            }
            let id = id.clone();
            self.tell(Event::Exited { id, code });
        };
        let exit = lock(&held.exit).clone();
        exit.get_or_init(tell).await;
    }

    fn tell(&self, event: Event) {
        // Nobody listening is not an error.
        let _ = self.events.send(event);
    }
}

impl Known for Table {
    fn running(&self) -> BTreeSet<SandboxId> {
        let is_running =
            |held: &Held| held.has_started.load(Ordering::SeqCst) && !held.has_exited();
        let table = lock(&self.held);
        table
            .iter()
            .filter(|(_, held)| is_running(held))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn exited(self: &Arc<Self>, id: SandboxId, code: u32) {
        let Some(held) = self.get(&id) else { return };
        let table = self.clone();
        // It may wait a little, which the events of others must not.
        tokio::spawn(async move { table.tell_exit(&id, &held, code).await });
    }

    fn out_of_memory(&self, id: SandboxId) {
        let Some(held) = self.get(&id) else { return };
        // What comes after the exit was told with it.
        if !held.is_short.swap(true, Ordering::SeqCst) || !held.has_exited() {
            self.tell(Event::OutOfMemory { id });
        }
    }
}

impl Held {
    pub(super) fn new(group: String, labels: BTreeMap<String, String>, terminal: bool) -> Self {
        Self {
            group,
            labels: Mutex::new(labels),
            terminal,
            gate: tokio::sync::Mutex::default(),
            network: Mutex::default(),
            slot: Mutex::default(),
            reader: Mutex::default(),
            has_started: AtomicBool::default(),
            is_short: AtomicBool::default(),
            exit: Mutex::default(),
        }
    }

    fn has_exited(&self) -> bool {
        lock(&self.exit).initialized()
    }

    /// Forgets the end of a main process, before another starts.
    pub(super) fn reset(&self) {
        *lock(&self.exit) = Arc::default();
        self.is_short.store(false, Ordering::SeqCst);
    }
}
