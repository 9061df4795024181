//! Layers become snapshots: each is applied by containerd's Diff service onto its parent's snapshot.
//!
//! A layer is unpacked as soon as it and its parents are in the content store; a layer whose
//! snapshot exists is not unpacked again, whichever image it came with.

use std::collections::HashMap;

use containerd_client::services::v1::{
    ApplyRequest,
    snapshots::{
        CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    },
};
use containerd_client::{tonic::Code, types::Mount};

use crate::{
    client::{CallError, Calling, Client},
    content,
    document::{ConfigFile, Descriptor, Manifest},
    lease::{Lease, unique},
    progress::{LayerState, Progress},
};

/// Layers could not be turned into snapshots.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// containerd refused a step.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The unpacked layer is another than the image's config names.
    #[error("layer {layer} unpacks to {found}, but the config names {expected}")]
    DiffId {
        /// The layer's own digest.
        layer: String,
        /// The digest of its tar.
        found: String,
        /// What the config says.
        expected: String,
    },
    /// Manifest and config contradict each other.
    #[error("the manifest has {layers} layers, but its config names {diff_ids}")]
    Count {
        /// Layers in the manifest.
        layers: usize,
        /// Layers in the config.
        diff_ids: usize,
    },
}

/// Unpacks the layers of one image in order.
pub(crate) struct Unpacker<'a> {
    client: &'a Client,
    lease: &'a Lease,
    layers: Vec<Step>,
}

/// One layer on its parents.
struct Step {
    layer: Descriptor,
    diff_id: String,
    parent: String,
    chain_id: String,
}

impl<'a> Unpacker<'a> {
    pub(crate) fn new(
        client: &'a Client,
        lease: &'a Lease,
        manifest: &Manifest,
        config: &ConfigFile,
    ) -> Result<Self, UnpackError> {
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let (layers, diff_ids) = (manifest.layers.len(), diff_ids.len());
            return Err(UnpackError::Count { layers, diff_ids });
        }
        let mut parent = String::new();
        let mut layers = Vec::with_capacity(diff_ids.len());
        let chain = config.chain_ids();
        for ((layer, diff_id), chain_id) in manifest.layers.iter().zip(diff_ids).zip(chain) {
            let (layer, diff_id) = (layer.clone(), diff_id.clone());
            layers.push(Step {
                layer,
                diff_id,
                parent,
                chain_id: chain_id.clone(),
            });
            parent = chain_id;
        }
        Ok(Self {
            client,
            lease,
            layers,
        })
    }

    /// Unpacks layer `index`; its content and its parents' snapshots must be there.
    pub(crate) async fn unpack(
        &self,
        index: usize,
        progress: &dyn Progress,
    ) -> Result<(), UnpackError> {
        let step = &self.layers[index];
        if !exists(self.client, &step.chain_id).await? {
            progress.layer(&step.layer.digest, LayerState::Unpacking);
            self.apply(step).await?;
        }
        self.lease.hold_snapshot(&step.chain_id).await?;
        progress.layer(&step.layer.digest, LayerState::Done);
        Ok(())
    }

    async fn apply(&self, step: &Step) -> Result<(), UnpackError> {
        let key = format!("extract-{} {}", unique(), step.chain_id);
        let mounts = self.prepare(&key, step).await?;
        let applied = self.fill(&key, step, mounts).await;
        if applied.is_err() {
            remove(self.client, &key).await?;
        }
        applied
    }

    async fn prepare(&self, key: &str, step: &Step) -> Result<Vec<Mount>, CallError> {
        let request = PrepareSnapshotRequest {
            snapshotter: self.client.snapshotter().to_owned(),
            key: key.to_owned(),
            parent: step.parent.clone(),
            labels: HashMap::new(),
        };
        let answer = self
            .client
            .snapshots()
            .prepare(self.lease.request(request))
            .await;
        let what = || format!("prepare a snapshot for layer {}", step.layer.digest);
        Ok(answer.calling(what)?.into_inner().mounts)
    }

    /// Applies the layer to the prepared snapshot, checks what came out, and names the snapshot.
    async fn fill(&self, key: &str, step: &Step, mounts: Vec<Mount>) -> Result<(), UnpackError> {
        let digest = &step.layer.digest;
        let diff = Some(step.layer.to_containerd());
        let request = ApplyRequest {
            diff,
            mounts,
            ..Default::default()
        };
        let answer = self.client.diff().apply(self.lease.request(request)).await;
        let answer = answer
            .calling(|| format!("unpack layer {digest}"))?
            .into_inner();
        let found = answer.applied.unwrap_or_default().digest;
        if found != step.diff_id {
            let (layer, expected) = (digest.clone(), step.diff_id.clone());
            return Err(UnpackError::DiffId {
                layer,
                found,
                expected,
            });
        }
        let request = CommitSnapshotRequest {
            snapshotter: self.client.snapshotter().to_owned(),
            name: step.chain_id.clone(),
            key: key.to_owned(),
            labels: HashMap::new(),
        };
        match self
            .client
            .snapshots()
            .commit(self.lease.request(request))
            .await
        {
            // Another pull was quicker with the same layer.
            Err(status) if status.code() == Code::AlreadyExists => {
                remove(self.client, key).await?;
            }
            answer => drop(answer.calling(|| format!("commit the snapshot of layer {digest}"))?),
        }
        let label = (
            "containerd.io/uncompressed".to_owned(),
            step.diff_id.clone(),
        );
        Ok(content::set_labels(self.client, digest, HashMap::from([label])).await?)
    }
}

/// Whether the snapshot `key` is there.
pub(crate) async fn exists(client: &Client, key: &str) -> Result<bool, CallError> {
    let snapshotter = client.snapshotter().to_owned();
    let request = StatSnapshotRequest {
        snapshotter,
        key: key.to_owned(),
    };
    match client.snapshots().stat(client.request(request)).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status).calling(|| format!("look up snapshot {key}")),
    }
}

/// Removes the snapshot `key`; one that is not there counts as removed.
pub(crate) async fn remove(client: &Client, key: &str) -> Result<(), CallError> {
    let snapshotter = client.snapshotter().to_owned();
    let request = RemoveSnapshotRequest {
        snapshotter,
        key: key.to_owned(),
    };
    match client.snapshots().remove(client.request(request)).await {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        answer => answer
            .map(drop)
            .calling(|| format!("remove snapshot {key}")),
    }
}
