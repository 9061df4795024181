//! [`Adapter`] over containerd: composes slots, file systems, cgroups, containers and tasks into sandboxes.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use opr_images::{Credentials, Image, Images, PullError, Reference};
use prost_types::Any;
use tokio::{
    net::TcpStream,
    sync::{broadcast, oneshot, watch},
    task::{JoinHandle, spawn_blocking},
};

use super::{
    Adapter, CreateError, EngineError, Event, Memory, Process, ProcessSpec, Sandbox, SandboxSpec,
    cgroup,
    client::Client,
    dial::Dialer,
    engine::{Engine, unreachable},
    events::Watch,
    slots::Slots,
    spec,
};
use crate::{
    config::{Class, Classes, Config, Limits},
    id::{ClassName, SandboxId},
};
use table::Table;

mod adopt;
mod create;
mod exec;
mod remove;
mod restart;
mod table;

/// Labels of a container that are this module's own.
const SLOT: &str = "opr/slot";
const CLASS: &str = "opr/class";
const TERMINAL: &str = "opr/terminal";
/// How containerd names the type of a runtime spec's limits.
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
    classes: Arc<Classes>,
    client: Client,
    images: Images,
    slots: Arc<Slots>,
    dialer: Dialer,
    held: Arc<Table>,
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
        let lacking = apply_classes(&config, &config.class)?;
        if !lacking.is_empty() {
            tracing::warn!(
                ?lacking,
                "this kernel lacks limits that the settings ask for"
            );
        }
        let slots = Slots::new(&config.run_dir, config.sandbox.clone())
            .map_err(|source| kernel("make the slots' folder", source))?;
        let dialer = Dialer::start().map_err(|source| kernel("start a thread", source))?;
        let events = broadcast::Sender::new(EVENTS);
        let held = Arc::new(Table::new(events));
        let (is_live, mut live) = watch::channel(false);
        let follow = Watch {
            client: client.clone(),
            known: held.clone(),
            is_live,
        };
        let watch = tokio::spawn(follow.run());
        let inner = Inner {
            classes: Arc::new(Classes::new(config.class.clone())),
            config,
            client,
            images,
            slots: Arc::new(slots),
            dialer,
            held,
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

    /// The classes that hold now.
    pub fn classes(&self) -> Arc<Classes> {
        self.inner.classes.clone()
    }

    /// Has other classes hold from now on, for sandboxes that run as for new ones. Answers which limits this kernel
    /// lacks, as in `build.memory.high`. Blocks for a few file system calls.
    ///
    /// # Errors
    /// The kernel refused a limit. What held before holds again.
    pub fn set_classes(
        &self,
        classes: BTreeMap<ClassName, Class>,
    ) -> Result<Vec<String>, EngineError> {
        let inner = &self.inner;
        let lacking = apply_classes(&inner.config, &classes).inspect_err(|_| {
            if let Err(error) = apply_classes(&inner.config, &inner.classes.all()) {
                tracing::error!(%error, "limits before the refused ones were not set again");
            }
        })?;
        for class in classes.values() {
            inner.slots.refill(class.outbound);
        }
        inner.classes.set(classes);
        Ok(lacking)
    }

    /// What the kernel says of a class, by file, and how many sandboxes it has.
    pub fn class_values(&self, name: &ClassName) -> (BTreeMap<String, String>, usize) {
        let group = class_group(&self.inner.config, name);
        (cgroup::values(&group), cgroup::children(&group).len())
    }

    /// Pulls an image that is not here.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn pull(&self, image: &Reference) -> Result<(), PullError> {
        self.inner.ensure(image).await.map(drop)
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

    /// Deletes every sandbox, also those of earlier processes, and what the node made beside them:
    /// bridge, rules, pinned namespaces, cgroups. Ends the node's own containerd. Images stay.
    ///
    /// # Errors
    /// What could be removed is gone, a repeated call goes on. See [`EngineError`].
    pub async fn remove_all(&self) -> Result<(), EngineError> {
        self.inner.remove_all().await?;
        self.stop().await?;
        self.engine.wait_for_shims().await;
        Ok(())
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
                && let Some(held) = inner.held.get(&id)
            {
                inner.delete_later(id, held);
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

    async fn restart(&self, id: &SandboxId) -> Result<Sandbox, CreateError> {
        self.inner.restart(id).await
    }

    fn cpu_time(&self, id: &SandboxId) -> Option<Duration> {
        cgroup::cpu_time(&self.inner.held.get(id)?.group)
    }

    fn memory(&self, id: &SandboxId) -> Option<Memory> {
        cgroup::memory(&self.inner.held.get(id)?.group)
    }

    async fn dial(&self, id: &SandboxId, port: u16) -> io::Result<TcpStream> {
        let held = self.inner.held.get(id);
        let network = held.and_then(|held| lock(&held.network).clone());
        let network = network.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.inner.dialer.dial(network.as_ref(), port).await
    }

    /// A caller who goes away before the answer leaves no process behind.
    async fn exec(&self, id: &SandboxId, spec: ProcessSpec) -> Result<Process, EngineError> {
        self.inner.exec(id, spec).await
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

    async fn label(
        &self,
        id: &SandboxId,
        labels: BTreeMap<String, String>,
    ) -> Result<(), EngineError> {
        let client = &self.inner.client;
        client.label_container(id.as_str(), labels.clone()).await?;
        if let Some(held) = self.inner.held.get(id) {
            lock(&held.labels).extend(labels);
        }
        Ok(())
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
        for class in self.inner.classes.all().values() {
            self.inner.slots.refill(class.outbound);
        }
        Ok(sandboxes)
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.held.events.subscribe()
    }
}

impl Inner {
    /// An image, pulled where it is absent, with the login of its registry where the settings have one.
    async fn ensure(&self, image: &Reference) -> Result<Image, PullError> {
        let login = self.config.registry.get(image.registry());
        let credentials = login.map_or(Credentials::Anonymous, |login| Credentials::Basic {
            username: login.user.clone(),
            password: login.password.clone(),
        });
        self.images.ensure(image, &credentials, &()).await
    }

    fn sandbox_group(&self, class: &ClassName, id: &SandboxId) -> String {
        format!("{}/{id}", class_group(&self.config, class))
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

fn apply_classes(
    config: &Config,
    classes: &BTreeMap<ClassName, Class>,
) -> Result<Vec<String>, EngineError> {
    let mut lacking = Vec::new();
    for (name, class) in classes {
        let keys = cgroup::set_class(&class_group(config, name), class)
            .map_err(|source| kernel("limit a class", source))?;
        lacking.extend(keys.into_iter().map(|key| format!("{name}.{key}")));
    }
    Ok(lacking)
}

/// The cgroup of a class. Two nodes on one machine differ in their containerd namespace.
fn class_group(config: &Config, class: &ClassName) -> String {
    format!("/{}/{class}", config.containerd.namespace)
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
