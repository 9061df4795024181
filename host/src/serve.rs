//! The daemon: puts the rooms together, serves until it is told to stop, and leaves instances running.

use std::{
    fs, io,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use opr_images::{Reference, ReferenceError};
use tokio_util::sync::CancellationToken;

use crate::{
    adapter::{Containerd, EngineError},
    api::{
        executor::ExecutorApi,
        gateway::{Gateway, Lookup, Target},
        node::{
            NodeApi,
            tuning::{ReadConfig, Tuning},
            wire::NodeInfo,
        },
        server::{Address, BindError, Server},
    },
    build::{Builds, Parts, client::ClientBuilds},
    code::{CodeCache, CodeError},
    config::{Config, Pull},
    executor::{Executor, execution::Body},
    function::{Catalog, Store, StoreError, catalog::CatalogError},
    storage::{
        Storage, StorageError,
        objects::{ObjectError, Objects},
    },
    sys,
    telemetry::{Metrics, chain},
};

/// Time between two looks for artifacts and code that no function refers to.
const CLEANING: Duration = Duration::from_secs(60);

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder cannot be made.
    #[error("cannot make {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A port or socket cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The container engine is not there.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The catalogue of runtimes cannot be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifacts' folder cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The storage device cannot be used.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// The unpacked code's folder cannot be used.
    #[error(transparent)]
    Code(#[from] CodeError),
}

/// A node that holds its ports and its instances, and serves nobody yet.
#[derive(Debug)]
pub struct Node {
    config: Arc<Config>,
    adapter: Arc<Containerd>,
    tuning: Tuning,
    executor: Arc<Executor>,
    builds: Builds,
    client_builds: ClientBuilds,
    store: Store,
    metrics: Arc<Metrics>,
    images: Vec<Reference>,
    gateway: Server,
    executor_api: Server,
    node_api: Server,
}

impl Node {
    /// Takes the ports (those that a service manager hands over: the gateway's, then the executor API's), starts or
    /// finds containerd, and takes over what an earlier process left running. A reload `read`s the settings anew.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(config: Config, read: ReadConfig) -> Result<Self, StartError> {
        let config = Arc::new(config);
        make_folders(&config)?;
        let drain = config.drain_timeout();
        // The socket first: a second daemon ends here.
        let node_api = Server::bind_unix(&config.node_socket(), drain).await?;
        let mut inherited = sys::inherited_sockets().into_iter();
        let gateway = server(inherited.next(), config.gateway_listen, drain).await?;
        let executor_api = server(inherited.next(), config.executor_listen, drain).await?;
        let store = Store::open(&config.state_dir)?;
        let catalog = Arc::new(Catalog::load(None)?);
        let images = images(&config.pull, &catalog);
        let storage = Storage::open(&config.state_dir)?;
        let code = CodeCache::new(&config.state_dir)?;
        let objects = Objects::new(&config.storage.device)?;
        let caches = Objects::new(config.storage.build_cache_device())?;
        let adapter = Containerd::start(config.clone()).await?;
        let metrics = Arc::<Metrics>::default();
        let executor = Executor::start(
            config.clone(),
            adapter.clone(),
            metrics.clone(),
            objects.clone(),
        )
        .await?;
        let parts = Parts {
            executor: executor.clone(),
            store: store.clone(),
            catalog,
            storage,
            code,
            classes: adapter.classes(),
        };
        let builds = Builds::new(&config, parts).map_err(|source| StartError::Folder {
            path: config.state_dir.join("builds"),
            source,
        })?;
        let staging = |source| StartError::Folder {
            path: config.state_dir.join("staging"),
            source,
        };
        let client_builds = ClientBuilds::new(&config, objects, caches).map_err(staging)?;
        let tuning = Tuning::new(config.clone(), adapter.clone(), executor.clone(), read);
        Ok(Self {
            config,
            adapter,
            tuning,
            executor,
            builds,
            client_builds,
            store,
            metrics,
            images,
            gateway,
            executor_api,
            node_api,
        })
    }

    /// What is told of this node.
    pub fn info(&self) -> NodeInfo {
        let text = |address: &Address| address.to_string();
        NodeInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            hostname: self.config.hostname.clone(),
            gateway: text(self.gateway.address()),
            executor: text(self.executor_api.address()),
        }
    }

    /// What changes its classes while it runs.
    pub fn tuning(&self) -> Tuning {
        self.tuning.clone()
    }

    /// Serves until `stop` or a caller's removal, then waits for executions in flight. After a `stop`
    /// instances and containerd go on, for the next process to adopt; a removal leaves nothing of them.
    ///
    /// # Errors
    /// Something could not be removed.
    pub async fn run(self, stop: CancellationToken) -> Result<(), EngineError> {
        let removal = CancellationToken::new();
        let node_api = self.node_api(removal.clone());
        let Self {
            config,
            adapter,
            executor,
            builds,
            client_builds,
            store,
            metrics,
            images,
            ..
        } = self;
        let executor_api = executor_api(config.clone(), executor.clone(), client_builds, metrics);
        let gateway = Gateway::new(lookup(store, builds.clone()), Arc::new(executor.clone()));
        let gateway = service(gateway, |gateway, request| async move {
            gateway.answer(request).await
        });
        let executor_api = service(executor_api, |api, request| async move {
            api.answer(request).await
        });
        let node_api = service(
            node_api,
            |api, request| async move { api.answer(request).await },
        );
        let ended = CancellationToken::new();
        let serving = async {
            tokio::join!(
                self.gateway.run(gateway, ended.clone()),
                self.executor_api.run(executor_api, ended.clone()),
                self.node_api.run(node_api, ended.clone()),
            );
        };
        let ending = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = removal.cancelled() => {}
                _ = async { tokio::join!(clean(&builds), pull(&adapter, images)) } => {}
            }
            ended.cancel();
            builds.stop().await;
            executor.drain(config.drain_timeout()).await;
        };
        tokio::join!(serving, ending);
        if removal.is_cancelled() {
            executor.delete_all().await;
            adapter.remove_all().await
        } else {
            adapter.release().await
        }
    }
}

fn executor_api(
    config: Arc<Config>,
    executor: Arc<Executor>,
    builds: ClientBuilds,
    metrics: Arc<Metrics>,
) -> ExecutorApi {
    let instances = Arc::new(executor.clone());
    ExecutorApi::new(config, instances, builds, move || metrics.text())
        .with_usage(move |id| executor.cpu_usage(id))
}

impl Node {
    fn node_api(&self, removal: CancellationToken) -> NodeApi {
        NodeApi {
            config: self.config.clone(),
            info: self.info(),
            executor: self.executor.clone(),
            builds: self.builds.clone(),
            store: self.store.clone(),
            tuning: self.tuning.clone(),
            removal,
        }
    }
}

async fn server(
    inherited: Option<OwnedFd>,
    address: SocketAddr,
    drain: Duration,
) -> Result<Server, BindError> {
    match inherited {
        Some(socket) => Server::inherit(socket.into(), drain),
        None => Server::bind(address, drain).await,
    }
}

/// What a server calls for each request to `api`.
fn service<A, F>(
    api: A,
    answer: impl Fn(Arc<A>, Request<Body>) -> F + Clone + Send + 'static,
) -> impl Fn(Request<Body>) -> F + Clone + Send + 'static
where
    A: Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let api = Arc::new(api);
    move |request| answer(api.clone(), request)
}

/// Functions as the gateway sees them: from memory, their code unpacked where it is not yet.
fn lookup(store: Store, builds: Builds) -> Lookup {
    Arc::new(move |name| {
        let (function, builds) = (store.get(&name), builds.clone());
        Box::pin(async move {
            let Some(function) = function else {
                return Ok(None);
            };
            Ok(Some(Target {
                spec: builds.instance(&function).await?,
                timeout: function.timeout,
                logging: function.logging,
            }))
        })
    })
}

/// The images that the settings want pulled. What is none is told and left out.
fn images(wanted: &Pull, catalog: &Catalog) -> Vec<Reference> {
    let mut images = Vec::new();
    let mut add = |name: &str, image: Result<Reference, String>| match image {
        Ok(image) => images.push(image),
        Err(error) => tracing::warn!(name, error, "no image to pull at the start"),
    };
    for name in &wanted.images {
        add(
            name,
            name.parse()
                .map_err(|error: ReferenceError| error.to_string()),
        );
    }
    for name in &wanted.runtimes {
        let runtime = catalog.find(name).map_err(|error| error.to_string());
        add(name, runtime.map(|runtime| runtime.image.clone()));
    }
    images
}

/// Pulls images that are not here, one after the other: executions that need one pull it themselves.
async fn pull(adapter: &Containerd, images: Vec<Reference>) {
    for image in images {
        match adapter.pull(&image).await {
            Ok(()) => tracing::info!(%image, "image is here"),
            Err(error) => {
                tracing::warn!(%image, error = %chain(&error), "image was not pulled");
            }
        }
    }
}

/// Never ends.
async fn clean(builds: &Builds) {
    loop {
        tokio::time::sleep(CLEANING).await;
        if let Err(error) = builds.clean().await {
            tracing::warn!(error = %chain(&error), "unused code was not removed");
        }
    }
}

/// Sandboxes' ids pass through these folders; root alone lists them.
fn make_folders(config: &Config) -> Result<(), StartError> {
    for path in [&config.state_dir, &config.run_dir] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(path)
            .map_err(|source| StartError::Folder {
                path: path.clone(),
                source,
            })?;
    }
    Ok(())
}
