//! Removes sandboxes: task, container, file systems, cgroup, slot.

use std::{io, sync::atomic::Ordering};

use super::{Inner, blocking, kernel, lock, table::Held};
use crate::{
    adapter::{EngineError, cgroup, rootfs::Folders},
    id::{ClassName, SandboxId},
};

impl Inner {
    pub(super) async fn delete(&self, id: &SandboxId) -> Result<(), EngineError> {
        let Some(held) = self.held.get(id) else {
            return Ok(());
        };
        let _gate = held.gate.lock().await;
        self.remove(id, &held).await
    }

    /// Removes what there is of a sandbox: also the undo of a creation that failed.
    pub(super) async fn remove(&self, id: &SandboxId, held: &Held) -> Result<(), EngineError> {
        if lock(&held.slot).is_none() && !held.has_started.load(Ordering::SeqCst) {
            self.held.remove(id);
            return Ok(());
        }
        lock(&held.network).take();
        self.client.remove_task(id.as_str()).await?;
        self.client.delete_container(id.as_str()).await?;
        let slot = *lock(&held.slot);
        self.remove_remains(id, &held.class, slot)
            .await
            .map_err(|source| kernel("remove what a sandbox had", source))?;
        lock(&held.slot).take();
        self.held.remove(id);
        Ok(())
    }

    pub(super) async fn remove_remains(
        &self,
        id: &SandboxId,
        class: &ClassName,
        slot: Option<u32>,
    ) -> io::Result<()> {
        let folders = Folders::new(&self.config, id);
        let group = self.sandbox_group(class, id);
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
