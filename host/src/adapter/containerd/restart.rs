//! Starts the main process of a sandbox again: a new task in the same container, over the same file systems.

use super::{Inner, create::wrong_command, lock};
use crate::{
    adapter::{CreateError, CreatePhases, Sandbox, rootfs::Folders},
    id::SandboxId,
};

impl Inner {
    pub(super) async fn restart(&self, id: &SandboxId) -> Result<Sandbox, CreateError> {
        let absent = || CreateError::Absent { id: id.clone() };
        let held = self.held.get(id).ok_or_else(absent)?;
        let _gate = held.gate.lock().await;
        // Whoever held the gate may have removed it.
        if lock(&held.slot).is_none() {
            return Err(absent());
        }
        let engine = |source| CreateError::Engine {
            id: id.clone(),
            source,
        };
        self.client.remove_task(id.as_str()).await.map_err(engine)?;
        let folders = Folders::new(&self.config, id);
        let reader = self.make_process(id, &folders, held.terminal).await?;
        let output = reader.output.clone();
        *lock(&held.reader) = Some(reader);
        // From here on an exit is one of the new main process.
        held.reset();
        self.client
            .start_task(id.as_str())
            .await
            .map_err(|source| wrong_command(id, source))?;
        Ok(Sandbox {
            id: id.clone(),
            labels: lock(&held.labels).clone(),
            scratch: folders.scratch(),
            output,
            phases: CreatePhases::default(),
        })
    }
}
