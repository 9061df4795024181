//! The connection to containerd: one channel, its namespace, and how its failures read.
//!
//! The channel reconnects by itself, so it survives a restart of containerd; a call made while
//! containerd is away fails and may be repeated.

use std::{path::Path, path::PathBuf, sync::Arc};

use containerd_client::services::v1::{
    content_client::ContentClient, diff_client::DiffClient, images_client::ImagesClient,
    leases_client::LeasesClient, snapshots::snapshots_client::SnapshotsClient,
    version_client::VersionClient,
};
use containerd_client::tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{self, Channel},
};

/// A diff of a layer, a config or a manifest stays far below this in one message; containerd's own
/// limit for a message is the same (containerd `defaults.DefaultMaxRecvMsgSize`).
const MAX_MESSAGE: usize = 16 << 20;

/// containerd cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers on the socket.
    #[error("cannot connect to containerd at {socket}")]
    Socket {
        /// The socket's path.
        socket: PathBuf,
        /// Why.
        source: transport::Error,
    },
    /// Something answers which is not containerd, or a containerd that is not ready.
    #[error("containerd at {socket} does not tell its version")]
    Version {
        /// The socket's path.
        socket: PathBuf,
        /// Its answer.
        source: Box<Status>,
    },
    /// The namespace is not the text of one.
    #[error("{namespace:?} is not a name of a containerd namespace")]
    Namespace {
        /// The text.
        namespace: String,
    },
}

/// A call to containerd failed.
#[derive(Debug, thiserror::Error)]
#[error("containerd refused to {what}")]
pub struct CallError {
    /// What was asked, as in `unpack layer sha256:…`.
    pub what: String,
    /// containerd's answer.
    pub source: Box<Status>,
}

/// Names the failed call: `.await.calling("list images")?`.
pub(crate) trait Calling<T> {
    fn calling(self, what: impl FnOnce() -> String) -> Result<T, CallError>;
}

impl<T> Calling<T> for Result<T, Status> {
    fn calling(self, what: impl FnOnce() -> String) -> Result<T, CallError> {
        self.map_err(|status| CallError {
            what: what(),
            source: Box::new(status),
        })
    }
}

/// containerd's services in one namespace, with one snapshotter.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    snapshotter: Arc<str>,
}

impl Client {
    pub(crate) async fn connect(
        socket: &Path,
        namespace: &str,
        snapshotter: &str,
    ) -> Result<Self, ConnectError> {
        let is_name = !namespace.is_empty()
            && namespace
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        let parsed = namespace.parse().ok().filter(|_| is_name);
        let namespace = parsed.ok_or_else(|| ConnectError::Namespace {
            namespace: namespace.to_owned(),
        })?;
        let channel =
            containerd_client::connect(socket)
                .await
                .map_err(|source| ConnectError::Socket {
                    socket: socket.to_owned(),
                    source,
                })?;
        VersionClient::new(channel.clone())
            .version(())
            .await
            .map_err(|status| ConnectError::Version {
                socket: socket.to_owned(),
                source: Box::new(status),
            })?;
        Ok(Self {
            channel,
            namespace,
            snapshotter: snapshotter.into(),
        })
    }

    pub(crate) fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    /// A request in the namespace, outside any lease.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    pub(crate) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }
}
