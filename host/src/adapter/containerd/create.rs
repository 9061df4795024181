//! Makes sandboxes: slot, file systems, container, task; undone where a step fails.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use containerd_client::{
    services::v1::{Container, CreateTaskRequest, container::Runtime},
    types,
};
use opr_images::Image;
use prost_types::Any;

use super::{CLASS, Inner, SLOT, TERMINAL, blocking, lock, table::Held};
use crate::{
    adapter::{
        CreateError, CreatePhases, EngineError, Sandbox, SandboxSpec,
        rootfs::Folders,
        slots::Slot,
        spec,
        stdio::{Reader, Stdio},
    },
    config::Class,
    id::SandboxId,
};

/// How containerd names the type of a runtime spec.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

impl Inner {
    pub(super) async fn create(
        self: &Arc<Self>,
        spec: SandboxSpec,
    ) -> Result<Sandbox, CreateError> {
        let id = spec.id.clone();
        let Some(class) = self.classes.get(&spec.class) else {
            return Err(CreateError::Class { class: spec.class });
        };
        let held = Arc::new(Held::new(
            self.sandbox_group(&spec.class, &id),
            spec.labels.clone(),
            spec.terminal,
        ));
        let gate = held.gate.lock().await;
        if !self.held.insert(&id, &held) {
            return Err(CreateError::Exists { id });
        }
        let made = self.make(&spec, &class, &held).await;
        if made.is_err()
            && let Err(error) = self.remove(&id, &held).await
        {
            tracing::warn!(%error, sandbox = %id, "failed sandbox is undone later");
            self.delete_later(id, held.clone());
        }
        drop(gate);
        made
    }

    async fn make(
        &self,
        spec: &SandboxSpec,
        class: &Class,
        held: &Held,
    ) -> Result<Sandbox, CreateError> {
        let id = &spec.id;
        let (image, layers) = self.image(spec).await?;
        let began = Instant::now();
        let (slot, user) = self.prepare(spec, class, (&image, layers), held).await?;
        let phase_sandbox = began.elapsed();
        let folders = Folders::new(&self.config, id);
        let reader = self
            .make_task(spec, class, &folders, (&image, &slot, user))
            .await?;
        let phase_create = began.elapsed() - phase_sandbox;
        let output = reader.output.clone();
        *lock(&held.reader) = Some(reader);
        held.has_started.store(true, Ordering::SeqCst);
        self.client
            .start_task(id.as_str())
            .await
            .map_err(|source| wrong_command(id, source))?;
        *lock(&held.network) = Some(slot.net.map(|(_, netns)| netns));
        let start = began.elapsed() - phase_sandbox - phase_create;
        let phases = CreatePhases {
            sandbox: phase_sandbox,
            create: phase_create,
            start,
        };
        let labels = spec.labels.clone();
        Ok(Sandbox {
            id: id.clone(),
            labels,
            scratch: folders.scratch(),
            output,
            phases,
        })
    }

    async fn image(&self, spec: &SandboxSpec) -> Result<(Image, Vec<PathBuf>), CreateError> {
        let missing = |source: Box<dyn std::error::Error + Send + Sync>| CreateError::Image {
            image: spec.image.to_string(),
            source,
        };
        let image = self.ensure(&spec.image).await;
        let image = image.map_err(|error| missing(error.into()))?;
        let layers = self
            .images
            .layers(&image)
            .await
            .map_err(|error| missing(error.into()))?;
        Ok((image, layers))
    }

    /// Takes a slot and makes the file systems; answers also uid and gid of the main process.
    async fn prepare(
        &self,
        spec: &SandboxSpec,
        class: &Class,
        (image, layers): (&Image, Vec<PathBuf>),
        held: &Held,
    ) -> Result<(Slot, (u32, u32)), CreateError> {
        let prepare = |step| {
            move |source| CreateError::Prepare {
                id: spec.id.clone(),
                step,
                source,
            }
        };
        let (slots, outbound) = (self.slots.clone(), class.outbound);
        let slot = match slots.take_ready(outbound) {
            Some(slot) => slot,
            None => blocking(move || slots.take(outbound))
                .await
                .map_err(prepare("its namespaces"))?,
        };
        *lock(&held.slot) = Some(slot.index);
        let folders = Folders::new(&self.config, &spec.id);
        let (spec_copy, class, user) = (spec.clone(), class.clone(), image.config.user.clone());
        blocking(move || {
            let user = folders.make(&spec_copy, &class, (&layers, &user), &slot)?;
            Ok((slot, user))
        })
        .await
        .map_err(prepare("its file systems"))
    }

    async fn make_task(
        &self,
        spec: &SandboxSpec,
        class: &Class,
        folders: &Folders,
        (image, slot, user): (&Image, &Slot, (u32, u32)),
    ) -> Result<Reader, CreateError> {
        let id = &spec.id;
        let engine = |source| CreateError::Engine {
            id: id.clone(),
            source,
        };
        let cgroup = self.sandbox_group(&spec.class, id);
        let parts = spec::Parts {
            sandbox: spec,
            class,
            image: &image.config,
            slot,
            dir: &folders.dir,
            cgroup: &cgroup,
            user,
            group: &self.config.containerd.namespace,
        };
        let document = spec::spec(&parts).and_then(|document| serde_json::to_vec(&document));
        let value = document.map_err(|error| CreateError::Prepare {
            id: id.clone(),
            step: "its description",
            source: error.into(),
        })?;
        let container = container(spec, class, slot.index, value);
        self.client
            .create_container(container)
            .await
            .map_err(engine)?;
        self.make_process(id, folders, spec.terminal).await
    }

    /// Makes the main process of a container, which waits for its start.
    pub(super) async fn make_process(
        &self,
        id: &SandboxId,
        folders: &Folders,
        terminal: bool,
    ) -> Result<Reader, CreateError> {
        let stdio = Stdio::new(&folders.dir, terminal);
        let (reader, senders) = stdio.read().map_err(|source| CreateError::Prepare {
            id: id.clone(),
            step: "its output",
            source,
        })?;
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let rootfs = types::Mount {
            r#type: "bind".into(),
            source: text(&folders.rootfs()),
            target: String::new(),
            options: ["rbind", "rw"].map(Into::into).to_vec(),
        };
        let task = CreateTaskRequest {
            container_id: id.to_string(),
            rootfs: vec![rootfs],
            stdout: text(&stdio.stdout),
            stderr: stdio.stderr.as_deref().map(text).unwrap_or_default(),
            terminal,
            ..Default::default()
        };
        let created = self.client.create_task(task).await;
        drop(senders);
        created.map_err(|source| wrong_command(id, source))?;
        Ok(reader)
    }
}

fn container(spec: &SandboxSpec, class: &Class, slot: u32, document: Vec<u8>) -> Container {
    Container {
        id: spec.id.to_string(),
        labels: labels(spec, slot),
        image: spec.image.to_string(),
        runtime: Some(Runtime {
            name: class.runtime.clone(),
            options: None,
        }),
        spec: Some(Any {
            type_url: SPEC_TYPE.into(),
            value: document,
        }),
        ..Default::default()
    }
}

fn labels(spec: &SandboxSpec, slot: u32) -> HashMap<String, String> {
    let own = [
        (SLOT, slot.to_string()),
        (CLASS, spec.class.to_string()),
        (TERMINAL, spec.terminal.to_string()),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value));
    spec.labels.clone().into_iter().chain(own).collect()
}

/// Tells a command that cannot be executed from a failure of the engine, by the words that shims have in common.
pub(super) fn wrong_command(id: &SandboxId, source: EngineError) -> CreateError {
    let id = id.clone();
    match &source {
        EngineError::Refused { message, .. }
            if message.contains("exec: ") || message.contains("exec failed") =>
        {
            CreateError::Command { id, source }
        }
        _ => CreateError::Engine { id, source },
    }
}
