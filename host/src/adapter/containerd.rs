//! [`Adapter`] over containerd: composes slots, file systems, cgroups, containers and tasks into sandboxes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use containerd_client::{
    services::v1::{Container, CreateTaskRequest, container::Runtime},
    types::{self, v1::Status},
};
use opr_images::{Credentials, Image, Images};
use prost_types::Any;
use tokio::{
    net::TcpStream,
    sync::{broadcast, oneshot, watch},
    task::{JoinHandle, spawn_blocking},
};

use super::{
    Adapter, CreateError, CreatePhases, EngineError, Event, Output, Sandbox, SandboxSpec, cgroup,
    client::Client,
    dial::Dialer,
    engine::{Engine, unreachable},
    events::{Known, Watch},
    rootfs::Folders,
    slots::{Slot, Slots},
    spec,
    stdio::Stdio,
};
use crate::{
    config::{Class, Config, Limits},
    id::{ClassName, SandboxId},
};

/// Labels of a container that are this module's own.
const SLOT: &str = "opr/slot";
const CLASS: &str = "opr/class";
const TERMINAL: &str = "opr/terminal";
/// How containerd names the types of a runtime spec and of its limits.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const LIMITS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// How many events a slow listener may be behind before it loses some.
const EVENTS: usize = 4096;
const LIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Sandboxes as containers of containerd.
#[derive(Debug)]
pub struct Containerd {
    inner: Arc<Inner>,
    engine: Engine,
    watch: JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    client: Client,
    images: Images,
    slots: Arc<Slots>,
    dialer: Dialer,
    held: Arc<Table>,
    events: broadcast::Sender<Event>,
}

/// The sandboxes that this process knows.
#[derive(Debug, Default)]
struct Table(Mutex<HashMap<SandboxId, Arc<Held>>>);

/// What is known of one sandbox.
#[derive(Debug)]
struct Held {
    class: ClassName,
    /// Held while the sandbox is made or removed: one of them at a time.
    gate: tokio::sync::Mutex<()>,
    /// `None` until the sandbox runs; its network is `None` for outbound `host`.
    network: Mutex<Option<Option<Arc<OwnedFd>>>>,
    slot: Mutex<Option<u32>>,
    has_started: AtomicBool,
    has_exited: AtomicBool,
}

impl Containerd {
    /// Connects to containerd (starting the node's own), makes the classes' cgroups and fills the pools.
    ///
    /// # Errors
    /// containerd does not answer, or the kernel refuses a folder or cgroup.
    pub async fn start(config: Arc<Config>) -> Result<Arc<Self>, EngineError> {
        make_dirs(&config).map_err(|source| kernel("make the node's folders", source))?;
        let engine = Engine::start(&config).await?;
        let names = &config.containerd;
        let images = Images::connect(&engine.socket, &names.namespace, &names.snapshotter)
            .await
            .map_err(|error| unreachable(&engine.socket, error))?;
        let channel = containerd_client::connect(&engine.socket)
            .await
            .map_err(|error| unreachable(&engine.socket, error))?;
        let namespace = names
            .namespace
            .parse()
            .map_err(|error| unreachable(&engine.socket, error))?;
        let client = Client { channel, namespace };
        for (name, class) in &config.class {
            cgroup::set_class(&class_group(&config, name), class)
                .map_err(|source| kernel("make a class's cgroup", source))?;
        }
        let slots = Slots::new(&config.run_dir, config.sandbox.clone())
            .map_err(|source| kernel("make the slots' folder", source))?;
        let dialer = Dialer::start().map_err(|source| kernel("start a thread", source))?;
        let events = broadcast::Sender::new(EVENTS);
        let held = Arc::new(Table::default());
        let (is_live, mut live) = watch::channel(false);
        let follow = Watch {
            client: client.clone(),
            known: held.clone(),
            events: events.clone(),
            is_live,
        };
        let watch = tokio::spawn(follow.run());
        let inner = Inner {
            config,
            client,
            images,
            slots: Arc::new(slots),
            dialer,
            held,
            events,
        };
        let started = Self {
            inner: Arc::new(inner),
            engine,
            watch,
        };
        match tokio::time::timeout(LIVE_TIMEOUT, live.wait_for(|is_live| *is_live)).await {
            Ok(Ok(_)) => Ok(Arc::new(started)),
            _ => Err(unreachable(
                &started.engine.socket,
                "its events do not arrive",
            )),
        }
    }

    /// The images of the same containerd.
    pub fn images(&self) -> &Images {
        &self.inner.images
    }

    /// Gives back the slots made ahead. Sandboxes and containerd go on without this process.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn release(&self) -> Result<(), EngineError> {
        let slots = self.inner.slots.clone();
        blocking(move || slots.drain())
            .await
            .map_err(|source| kernel("destroy the slots made ahead", source))
    }

    /// As [`Containerd::release`], and ends the node's own containerd. Sandboxes are not touched.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn stop(&self) -> Result<(), EngineError> {
        self.release().await?;
        self.watch.abort();
        self.engine
            .stop()
            .await
            .map_err(|source| kernel("end containerd", source))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.inner.slots.close();
        self.watch.abort();
    }
}

#[async_trait]
impl Adapter for Containerd {
    /// A caller who goes away before the answer leaves nothing behind.
    async fn create(&self, spec: SandboxSpec) -> Result<Sandbox, CreateError> {
        let id = spec.id.clone();
        let inner = self.inner.clone();
        let (answer, sandbox) = oneshot::channel();
        tokio::spawn(async move {
            let id = spec.id.clone();
            if let Err(Ok(_)) = answer.send(inner.create(spec).await)
                && let Err(error) = inner.delete(&id).await
            {
                tracing::error!(%error, sandbox = %id, "abandoned sandbox was not removed");
            }
        });
        sandbox.await.unwrap_or_else(|_| {
            let message = "the work ended early".to_owned();
            Err(CreateError::Engine {
                id,
                source: EngineError::Refused {
                    what: "make it",
                    message,
                },
            })
        })
    }

    async fn dial(&self, id: &SandboxId, port: u16) -> io::Result<TcpStream> {
        let held = self.inner.held.get(id);
        let network = held.and_then(|held| lock(&held.network).clone());
        let network = network.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.inner.dialer.dial(network.as_ref(), port).await
    }

    async fn update(&self, id: &SandboxId, limits: Limits) -> Result<(), EngineError> {
        let refused = |error: serde_json::Error| EngineError::Refused {
            what: "update the task",
            message: error.to_string(),
        };
        let limits = spec::limits(&limits).and_then(|limits| serde_json::to_vec(&limits));
        let value = limits.map_err(refused)?;
        let resources = Any {
            type_url: LIMITS_TYPE.into(),
            value,
        };
        self.inner.client.update_task(id.as_str(), resources).await
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), EngineError> {
        // On a task of its own, so that a caller who goes away does not leave half of it.
        let (inner, id) = (self.inner.clone(), id.clone());
        let work = tokio::spawn(async move { inner.delete(&id).await });
        work.await.unwrap_or_else(|error| {
            Err(EngineError::Refused {
                what: "delete the sandbox",
                message: error.to_string(),
            })
        })
    }

    async fn adopt(&self) -> Result<Vec<Sandbox>, EngineError> {
        let sandboxes = self.inner.adopt().await?;
        for kind in self.inner.config.class.values().map(|class| class.outbound) {
            self.inner.slots.refill(kind);
        }
        Ok(sandboxes)
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }
}

impl Inner {
    async fn create(&self, spec: SandboxSpec) -> Result<Sandbox, CreateError> {
        let id = spec.id.clone();
        let Some(class) = self.config.class.get(&spec.class).cloned() else {
            return Err(CreateError::Class { class: spec.class });
        };
        let held = Arc::new(Held::new(spec.class.clone()));
        let gate = held.gate.lock().await;
        if !self.held.insert(&id, &held) {
            return Err(CreateError::Exists { id });
        }
        let made = self.make(&spec, &class, &held).await;
        if made.is_err()
            && let Err(error) = self.remove(&id, &held).await
        {
            tracing::error!(%error, sandbox = %id, "failed sandbox was not undone");
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
        let output = self
            .make_task(spec, class, &folders, (&image, &slot, user))
            .await?;
        let phase_create = began.elapsed() - phase_sandbox;
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
        let image = self
            .images
            .ensure(&spec.image, &Credentials::Anonymous, &())
            .await
            .map_err(|error| missing(error.into()))?;
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
    ) -> Result<Arc<Output>, CreateError> {
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
        let stdio = Stdio::new(&folders.dir, spec.terminal);
        let (output, senders) = stdio.read().map_err(|source| CreateError::Prepare {
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
            terminal: spec.terminal,
            ..Default::default()
        };
        let created = self.client.create_task(task).await;
        drop(senders);
        created.map_err(|source| wrong_command(id, source))?;
        Ok(output)
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), EngineError> {
        let Some(held) = self.held.get(id) else {
            return Ok(());
        };
        let _gate = held.gate.lock().await;
        self.remove(id, &held).await
    }

    /// Removes what there is of a sandbox: also the undo of a creation that failed.
    async fn remove(&self, id: &SandboxId, held: &Held) -> Result<(), EngineError> {
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

    async fn remove_remains(
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

    async fn adopt(&self) -> Result<Vec<Sandbox>, EngineError> {
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
        let (output, _) = Stdio::new(&folders.dir, terminal).read().ok()?;
        let held = Held::new(class);
        *lock(&held.network) = Some(slot.net.map(|(_, netns)| netns));
        *lock(&held.slot) = Some(index);
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
        self.remove_remains(id, &class, None)
            .await
            .map_err(|source| kernel("remove what a sandbox had", source))
    }

    /// Removes folders, mounts, cgroups and slots of sandboxes that are not here.
    async fn sweep(&self) -> io::Result<()> {
        let (config, slots, held) = (self.config.clone(), self.slots.clone(), self.held.clone());
        blocking(move || {
            slots.sweep()?;
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
            for class in config.class.keys() {
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

    fn sandbox_group(&self, class: &ClassName, id: &SandboxId) -> String {
        format!("{}/{id}", class_group(&self.config, class))
    }
}

impl Table {
    fn get(&self, id: &SandboxId) -> Option<Arc<Held>> {
        lock(&self.0).get(id).cloned()
    }

    /// Says whether the place was free.
    fn insert(&self, id: &SandboxId, held: &Arc<Held>) -> bool {
        let mut table = lock(&self.0);
        let is_free = !table.contains_key(id);
        if is_free {
            table.insert(id.clone(), held.clone());
        }
        is_free
    }

    fn remove(&self, id: &SandboxId) {
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
    fn new(class: ClassName) -> Self {
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

/// The node's folders may be passed through by sandboxes' ids, and listed by root alone.
fn make_dirs(config: &Config) -> io::Result<()> {
    for top in [&config.run_dir, &config.state_dir] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(top.join("sandboxes"))?;
    }
    Ok(())
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

/// The cgroup of a class. Two nodes on one machine differ in their containerd namespace.
fn class_group(config: &Config, class: &ClassName) -> String {
    format!("/{}/{class}", config.containerd.namespace)
}

/// Tells a command that cannot be executed from a failure of the engine, by runc's words.
fn wrong_command(id: &SandboxId, source: EngineError) -> CreateError {
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

fn kernel(what: &'static str, source: io::Error) -> EngineError {
    EngineError::Kernel { what, source }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}
