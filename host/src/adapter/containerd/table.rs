//! The sandboxes that this process knows.

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::lock;
use crate::{
    adapter::events::Known,
    id::{ClassName, SandboxId},
};

/// The sandboxes that this process knows.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<HashMap<SandboxId, Arc<Held>>>);

/// What is known of one sandbox.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) class: ClassName,
    /// Held while the sandbox is made or removed: one of them at a time.
    pub(super) gate: tokio::sync::Mutex<()>,
    /// `None` until the sandbox runs; its network is `None` for outbound `host`.
    pub(super) network: Mutex<Option<Option<Arc<OwnedFd>>>>,
    pub(super) slot: Mutex<Option<u32>>,
    pub(super) has_started: AtomicBool,
    pub(super) has_exited: AtomicBool,
}

impl Table {
    pub(super) fn get(&self, id: &SandboxId) -> Option<Arc<Held>> {
        lock(&self.0).get(id).cloned()
    }

    pub(super) fn ids(&self) -> Vec<SandboxId> {
        lock(&self.0).keys().cloned().collect()
    }

    /// Says whether the place was free.
    pub(super) fn insert(&self, id: &SandboxId, held: &Arc<Held>) -> bool {
        let mut table = lock(&self.0);
        let is_free = !table.contains_key(id);
        if is_free {
            table.insert(id.clone(), held.clone());
        }
        is_free
    }

    pub(super) fn remove(&self, id: &SandboxId) {
        lock(&self.0).remove(id);
    }
}

impl Known for Table {
    fn running(&self) -> BTreeSet<SandboxId> {
        let is_running = |held: &Held| {
            held.has_started.load(Ordering::SeqCst) && !held.has_exited.load(Ordering::SeqCst)
        };
        let table = lock(&self.0);
        table
            .iter()
            .filter(|(_, held)| is_running(held))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn note_exit(&self, id: &SandboxId) -> bool {
        self.get(id)
            .is_some_and(|held| !held.has_exited.swap(true, Ordering::SeqCst))
    }
}

impl Held {
    pub(super) fn new(class: ClassName) -> Self {
        Self {
            class,
            gate: tokio::sync::Mutex::default(),
            network: Mutex::default(),
            slot: Mutex::default(),
            has_started: AtomicBool::default(),
            has_exited: AtomicBool::default(),
        }
    }
}
