//! OCI images in containerd: pull, import, build, unpack and mount.
//!
//! Everything goes through containerd's gRPC API: blobs into its content store, layers into its
//! snapshotter, names into its image store, so that `ctr` and any other client can use an image that
//! came through here. While an image is half there, a lease keeps it from the garbage collector.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use opr_images::{Credentials, Images};
//! let socket = "/run/opr/containerd/containerd.sock".as_ref();
//! let images = Images::connect(socket, "opr", "overlayfs").await?;
//! let image = images.ensure(&"node:20".parse()?, &Credentials::Anonymous, &()).await?;
//! let layers = images.layers(&image).await?;
//! opr_images::mount::mount_rootfs("/mnt".as_ref(), &layers, None, None)?;
//! # Ok(()) }
//! ```

mod base;
pub mod build;
mod client;
mod content;
mod document;
mod import;
mod lease;
pub mod mount;
mod progress;
mod pull;
pub mod reference;
mod registry;
mod skeleton;
mod store;
mod sys;
mod unpack;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

pub use base::BaseError;
pub use client::{CallError, ConnectError};
pub use document::DocumentError;
pub use import::ImportError;
pub use progress::{LayerState, Progress};
pub use pull::PullError;
pub use reference::{Reference, ReferenceError};
pub use registry::Credentials;
pub use skeleton::make_skeleton;
pub use store::StoreError;
pub use unpack::UnpackError;

/// The images of one containerd namespace. Cheap to clone; clones share a connection.
#[derive(Clone, Debug)]
pub struct Images {
    client: client::Client,
    /// Layer directories by chain id.
    layers: Arc<Mutex<HashMap<String, Vec<PathBuf>>>>,
    ingests: Arc<pull::Ingests>,
    /// Registries that are spoken to without TLS, besides this machine's own.
    insecure: Arc<BTreeSet<String>>,
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub reference: Reference,
    /// The digest of its manifest for this machine.
    pub digest: String,
    /// How to run it.
    pub config: ImageConfig,
    /// The stack of its layers: the name of its snapshot. Empty for an image without layers.
    pub chain_id: String,
    /// Compressed layers and config together, in bytes.
    pub size_bytes: u64,
    /// When it was made, as its config tells (RFC 3339).
    pub created: Option<String>,
}

/// What an image says of how to run it (OCI image-spec, `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// The command's first part.
    pub entrypoint: Vec<String>,
    /// The command's second part, or the whole where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Where the command starts; empty means `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    pub user: String,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// The signal that stops the command softly, as in `SIGTERM`.
    pub stop_signal: Option<String>,
}

impl Images {
    /// Connects to containerd's socket. The connection survives a restart of containerd.
    ///
    /// # Errors
    /// When nothing answers there, or it is no containerd.
    pub async fn connect(
        socket: &Path,
        namespace: &str,
        snapshotter: &str,
    ) -> Result<Self, ConnectError> {
        let client = client::Client::connect(socket, namespace, snapshotter).await?;
        let (layers, ingests, insecure) = Default::default();
        Ok(Self {
            client,
            layers,
            ingests,
            insecure,
        })
    }

    /// Speaks plain HTTP to these registries (host and port). Those on loopback addresses need no
    /// mention.
    pub fn with_insecure_registries(self, registries: impl IntoIterator<Item = String>) -> Self {
        Self {
            insecure: Arc::new(registries.into_iter().collect()),
            ..self
        }
    }
}
