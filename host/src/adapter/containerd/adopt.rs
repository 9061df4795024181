//! Takes over the sandboxes of an earlier process, and removes what nobody owns.

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{Arc, atomic::Ordering},
};

use containerd_client::{services::v1::Container, types::v1::Status};

use super::{CLASS, Inner, SLOT, TERMINAL, blocking, class_group, kernel, lock, table::Held};
use crate::{
    adapter::{
        CreatePhases, EngineError, Sandbox, cgroup,
        rootfs::{Folders, remove_skeletons},
        stdio::Stdio,
    },
    id::{ClassName, SandboxId},
};

impl Inner {
    pub(super) async fn adopt(&self) -> Result<Vec<Sandbox>, EngineError> {
        let containers = self.client.containers_here().await?;
        let tasks = self.client.tasks_here().await?;
        let mut adopted = Vec::new();
        for container in containers {
            let Ok(id) = SandboxId::try_new(container.id.clone()) else {
                continue;
            };
            if self.held.get(&id).is_some() {
                continue;
            }
            let is_running = tasks
                .get(id.as_str())
                .is_some_and(|task| task.status() == Status::Running);
            let sandbox = if is_running {
                self.take_over(&id, &container)
            } else {
                None
            };
            match sandbox {
                Some(sandbox) => adopted.push(sandbox),
                None => self.remove_stranger(&id, &container).await?,
            }
        }
        self.sweep()
            .await
            .map_err(|source| kernel("remove what nobody owns", source))?;
        Ok(adopted)
    }

    /// Makes a running container a sandbox of this process; `None` where parts of it are missing.
    fn take_over(&self, id: &SandboxId, container: &Container) -> Option<Sandbox> {
        let mut labels: BTreeMap<_, _> = container.labels.clone().into_iter().collect();
        let index = labels.remove(SLOT)?.parse().ok()?;
        let class = ClassName::try_new(labels.remove(CLASS)?).ok()?;
        let terminal = labels.remove(TERMINAL)?.parse().ok()?;
        let slot = self.slots.adopt(index).ok()?;
        let folders = Folders::new(&self.config, id);
        // The shim holds the other ends: the senders are not needed.
        let (reader, _) = Stdio::new(&folders.dir, terminal).read().ok()?;
        let held = Held::new(self.sandbox_group(&class, id), labels.clone(), terminal);
        *lock(&held.network) = Some(slot.net.map(|(_, netns)| netns));
        *lock(&held.slot) = Some(index);
        let output = reader.output.clone();
        *lock(&held.reader) = Some(reader);
        held.has_started.store(true, Ordering::SeqCst);
        self.held.insert(id, &Arc::new(held));
        let scratch = folders.scratch();
        Some(Sandbox {
            id: id.clone(),
            labels,
            scratch,
            output,
            phases: CreatePhases::default(),
        })
    }

    async fn remove_stranger(&self, id: &SandboxId, found: &Container) -> Result<(), EngineError> {
        self.client.remove_task(id.as_str()).await?;
        self.client.delete_container(id.as_str()).await?;
        let class = found
            .labels
            .get(CLASS)
            .and_then(|name| ClassName::try_new(name.clone()).ok());
        let Some(class) = class else { return Ok(()) };
        // Its slot is destroyed by the sweep.
        self.remove_remains(id, &self.sandbox_group(&class, id), None)
            .await
            .map_err(|source| kernel("remove what a sandbox had", source))
    }

    /// Removes folders, mounts, cgroups and slots of sandboxes that are not here.
    async fn sweep(&self) -> io::Result<()> {
        let (config, slots, held) = (self.config.clone(), self.slots.clone(), self.held.clone());
        let classes = self.classes.all();
        blocking(move || {
            slots.sweep()?;
            remove_skeletons(&config.state_dir, |slot| slots.is_used(slot))?;
            for top in [&config.run_dir, &config.state_dir] {
                for entry in fs::read_dir(top.join("sandboxes"))? {
                    let Ok(name) = entry?.file_name().into_string() else {
                        continue;
                    };
                    let Ok(id) = SandboxId::try_new(name) else {
                        continue;
                    };
                    if held.get(&id).is_none() {
                        Folders::new(&config, &id).remove()?;
                    }
                }
            }
            for class in classes.keys() {
                let group = class_group(&config, class);
                for name in cgroup::children(&group) {
                    let is_here =
                        SandboxId::try_new(name.clone()).is_ok_and(|id| held.get(&id).is_some());
                    if !is_here {
                        cgroup::remove(&format!("{group}/{name}"))?;
                    }
                }
            }
            Ok(())
        })
        .await
    }
}
