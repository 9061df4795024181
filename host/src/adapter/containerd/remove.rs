//! Removes sandboxes: task, container, file systems, cgroup, slot.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::time;

use super::{Inner, blocking, class_group, kernel, lock, table::Held};
use crate::{
    adapter::{EngineError, cgroup, rootfs::Folders},
    config::{Class, Config},
    id::{ClassName, SandboxId},
};

/// Sandboxes removed at once when all are.
const AT_ONCE: usize = 8;
/// Between two attempts to undo a creation: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

impl Inner {
    /// Removes every sandbox, then what all of them shared.
    pub(super) async fn remove_all(&self) -> Result<(), EngineError> {
        // Nothing is lost where this fails: what it could not take over is met again below.
        let adopted = self.adopt().await.map(drop);
        let ids = self.held.ids();
        let deleted = futures_util::stream::iter(ids)
            .map(|id| async move { self.delete(&id).await })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let (slots, config) = (self.slots.clone(), self.config.clone());
        let classes = self.classes.all();
        let shared = blocking(move || {
            let outcomes = [
                slots.drain(),
                slots.remove_network(),
                remove_groups(&config, &classes),
            ];
            outcomes.into_iter().collect()
        })
        .await
        .map_err(|source| kernel("remove what sandboxes shared", source));
        let failed = std::iter::once(adopted)
            .chain(deleted)
            .chain(std::iter::once(shared))
            .filter_map(Result::err);
        all_of(failed.collect())
    }

    pub(super) async fn delete(&self, id: &SandboxId) -> Result<(), EngineError> {
        match self.held.get(id) {
            Some(held) => self.delete_held(id, &held).await,
            None => Ok(()),
        }
    }

    async fn delete_held(&self, id: &SandboxId, held: &Arc<Held>) -> Result<(), EngineError> {
        let _gate = held.gate.lock().await;
        // Whoever held the gate may have removed it, and another may have the name by now.
        match self.held.get(id) {
            Some(now) if Arc::ptr_eq(&now, held) => self.remove(id, held).await,
            _ => Ok(()),
        }
    }

    /// Deletes in the background, until it succeeds, what nobody else knows of.
    pub(super) fn delete_later(self: &Arc<Self>, id: SandboxId, held: Arc<Held>) {
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut pause = PAUSE.0;
            while let Some(inner) = inner.upgrade() {
                match inner.delete_held(&id, &held).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::error!(%error, sandbox = %id, "failed sandbox was not undone");
                    }
                }
                drop(inner);
                time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        });
    }

    /// Removes what there is of a sandbox: also the undo of a creation that failed.
    pub(super) async fn remove(&self, id: &SandboxId, held: &Held) -> Result<(), EngineError> {
        if lock(&held.slot).is_none() && !held.has_started.load(Ordering::SeqCst) {
            self.held.remove(id);
            return Ok(());
        }
        let has_run = lock(&held.network).take().is_some();
        let code = self.client.remove_task(id.as_str()).await?;
        if has_run {
            // The engine's word of it may come when the sandbox is no longer known.
            self.held.tell_exit(id, held, code).await;
        }
        self.client.delete_container(id.as_str()).await?;
        let slot = *lock(&held.slot);
        self.remove_remains(id, &held.group, slot)
            .await
            .map_err(|source| kernel("remove what a sandbox had", source))?;
        lock(&held.slot).take();
        self.held.remove(id);
        Ok(())
    }

    pub(super) async fn remove_remains(
        &self,
        id: &SandboxId,
        group: &str,
        slot: Option<u32>,
    ) -> io::Result<()> {
        let folders = Folders::new(&self.config, id);
        let group = group.to_owned();
        let slots = self.slots.clone();
        blocking(move || {
            // Each is tried, whatever became of the one before.
            let outcomes = [
                folders.remove(),
                cgroup::remove(&group),
                slot.map_or(Ok(()), |slot| slots.destroy(slot)),
            ];
            outcomes.into_iter().collect()
        })
        .await
    }
}

/// The cgroups of the classes, and the one around them where nobody else is in it.
fn remove_groups(config: &Config, classes: &BTreeMap<ClassName, Class>) -> io::Result<()> {
    let outcomes: Vec<_> = classes
        .keys()
        .map(|class| cgroup::remove(&class_group(config, class)))
        .collect();
    outcomes.into_iter().collect::<io::Result<()>>()?;
    let top = &config.containerd.namespace;
    if cgroup::children(top).is_empty() {
        cgroup::remove(top)?;
    }
    Ok(())
}

/// One failure as it is, more than one by their words.
fn all_of(mut failed: Vec<EngineError>) -> Result<(), EngineError> {
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        _ => {
            let words: Vec<_> = failed.iter().map(chain).collect();
            Err(EngineError::Refused {
                what: "remove all of the node",
                message: words.join("; "),
            })
        }
    }
}

fn chain(error: &EngineError) -> String {
    let error: &(dyn Error + 'static) = error;
    let causes = std::iter::successors(Some(error), |error| (**error).source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
