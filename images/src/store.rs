//! The images that are here: get, list, remove, and the directories of their layers.
//!
//! A View snapshot per distinct stack of layers, held by a `containerd.io/gc.root` label, makes
//! containerd tell the layers' directories and keep them. It is shared by all images of that stack.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
};

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as Record, ListImagesRequest,
    UpdateImageRequest,
    snapshots::{ListSnapshotsRequest, MountsRequest, ViewSnapshotRequest},
};
use containerd_client::{
    tonic::{Code, Status},
    types::Mount,
};
use prost_types::FieldMask;
use time::OffsetDateTime;

use crate::{
    Image, ImageConfig, Images, Reference,
    client::{CallError, Calling, Client},
    content,
    document::{ConfigFile, Descriptor, Document, DocumentError, Manifest},
    lease::{Lease, timestamp},
    unpack,
};

/// The images here could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// containerd refused a step.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A document of the image cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// There is no such image.
    #[error("there is no image {reference}")]
    Absent {
        /// Its name.
        reference: Reference,
    },
    /// A part of the image is not in the content store.
    #[error("{digest} of image {reference} is not in the content store")]
    Incomplete {
        /// The image's name.
        reference: Reference,
        /// The part.
        digest: String,
    },
    /// The snapshotter does not tell directories.
    #[error("snapshotter {snapshotter} mounts {kind}, which has no layer directories")]
    Layers {
        /// The snapshotter's name.
        snapshotter: String,
        /// The kind of mount it gave.
        kind: String,
    },
}

/// An image's documents, as found behind its target.
pub(crate) struct Documents {
    /// The labels that each of them should carry, by digest.
    pub(crate) labels: Vec<(String, HashMap<String, String>)>,
    /// The manifest's own digest.
    pub(crate) digest: String,
    pub(crate) manifest: Manifest,
    pub(crate) config: ConfigFile,
}

impl Images {
    /// The image of that name, if it is here.
    ///
    /// # Errors
    /// When containerd fails, or the image's record leads to content that is gone or unusable.
    pub async fn get(&self, reference: &Reference) -> Result<Option<Image>, StoreError> {
        let request = self.client.request(GetImageRequest {
            name: reference.to_string(),
        });
        let record = match self.client.images().get(request).await {
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            answer => {
                answer
                    .calling(|| format!("get image {reference}"))?
                    .into_inner()
                    .image
            }
        };
        match record {
            Some(record) => self.read(reference.clone(), &record).await.map(Some),
            None => Ok(None),
        }
    }

    /// All images here, by name. One that cannot be read is left out and logged.
    ///
    /// # Errors
    /// When containerd fails.
    pub async fn list(&self) -> Result<Vec<Image>, StoreError> {
        let request = self.client.request(ListImagesRequest::default());
        let answer = self.client.images().list(request).await;
        let records = answer
            .calling(|| "list images".to_owned())?
            .into_inner()
            .images;
        let mut images = Vec::with_capacity(records.len());
        for record in records {
            let Ok(reference) = record.name.parse() else {
                tracing::warn!(
                    name = record.name,
                    "image left out: not a name of this node's"
                );
                continue;
            };
            match self.read(reference, &record).await {
                Ok(image) => images.push(image),
                Err(error) => {
                    tracing::warn!(name = record.name, error = %error, "image left out: unreadable");
                }
            }
        }
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(images)
    }

    /// Removes the image, and its layers unless another image has them.
    ///
    /// The caller sees to it that nothing runs of it: its layers' directories go away.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when there is no such image.
    pub async fn remove(&self, reference: &Reference) -> Result<(), StoreError> {
        let image = self.get(reference).await;
        if let Ok(None) = image {
            return Err(StoreError::Absent {
                reference: reference.clone(),
            });
        }
        if let Ok(Some(image)) = image {
            let others = self.list().await?;
            let has_layers = |i: &Image| i.reference != *reference && i.chain_id == image.chain_id;
            if !others.iter().any(has_layers) {
                self.forget_view(&image.chain_id).await?;
            }
        }
        let name = reference.to_string();
        let request = DeleteImageRequest {
            name,
            sync: true,
            ..Default::default()
        };
        match self
            .client
            .images()
            .delete(self.client.request(request))
            .await
        {
            Err(status) if status.code() == Code::NotFound => Err(StoreError::Absent {
                reference: reference.clone(),
            }),
            answer => {
                answer.calling(|| format!("remove image {reference}"))?;
                Ok(())
            }
        }
    }

    /// Lets go of layers that no image names any more (a newer image has taken the name), except
    /// those in `in_use`, the chain ids of images that something still runs of. Answers what went.
    ///
    /// # Errors
    /// When containerd fails.
    pub async fn prune(&self, in_use: &BTreeSet<String>) -> Result<Vec<String>, StoreError> {
        let named: BTreeSet<_> = self.list().await?.into_iter().map(|i| i.chain_id).collect();
        let mut gone = Vec::new();
        for chain_id in self.views().await? {
            if !named.contains(&chain_id) && !in_use.contains(&chain_id) {
                self.forget_view(&chain_id).await?;
                gone.push(chain_id);
            }
        }
        Ok(gone)
    }

    /// The directories of the image's layers, topmost first, to be used as lower layers of an
    /// overlay. They are read-only by agreement and stay until the image is removed.
    ///
    /// # Errors
    /// When containerd fails, the image was never unpacked, or the snapshotter is one that does
    /// not keep layers in directories.
    pub async fn layers(&self, image: &Image) -> Result<Vec<PathBuf>, StoreError> {
        let cached = self
            .layers
            .lock()
            .expect("no holder panics")
            .get(&image.chain_id)
            .cloned();
        if let Some(layers) = cached.filter(|layers| layers.iter().all(|dir| dir.is_dir())) {
            return Ok(layers);
        }
        let layers = lower_dirs(&self.client, self.view(&image.chain_id).await?)?;
        let mut cache = self.layers.lock().expect("no holder panics");
        cache.insert(image.chain_id.clone(), layers.clone());
        Ok(layers)
    }

    /// Makes `target` the content of the name `reference`, now that all of it is there: from here
    /// on the image holds its parts and the lease may go.
    pub(crate) async fn record(
        &self,
        lease: Lease,
        reference: &Reference,
        target: &Descriptor,
        documents: Documents,
    ) -> Result<Image, CallError> {
        for (digest, labels) in &documents.labels {
            content::set_labels(&self.client, digest, labels.clone()).await?;
        }
        let target = Some(target.to_containerd());
        let record = Record {
            name: reference.to_string(),
            target,
            ..Default::default()
        };
        self.write_record(&lease, record)
            .await
            .calling(|| format!("record image {reference}"))?;
        lease.release().await;
        Ok(Image::new(reference.clone(), documents))
    }

    async fn write_record(&self, lease: &Lease, record: Record) -> Result<(), Status> {
        let image = Some(record);
        let request = CreateImageRequest {
            image: image.clone(),
            ..Default::default()
        };
        let mut images = self.client.images();
        match images.create(lease.request(request)).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            answer => return answer.map(drop),
        }
        let update_mask = Some(FieldMask {
            paths: vec!["target".to_owned()],
        });
        let request = UpdateImageRequest {
            image,
            update_mask,
            ..Default::default()
        };
        images.update(lease.request(request)).await.map(drop)
    }

    async fn read(&self, reference: Reference, record: &Record) -> Result<Image, StoreError> {
        let target = record.target.clone().unwrap_or_default();
        let documents = documents(&self.client, &reference, &target.digest).await?;
        Ok(Image::new(reference, documents))
    }

    /// The mounts of the view on a stack of layers; made if absent.
    async fn view(&self, chain_id: &str) -> Result<Vec<Mount>, CallError> {
        let key = view_key(chain_id);
        let snapshotter = self.client.snapshotter().to_owned();
        let request = MountsRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
        };
        let what = || format!("view the layers {chain_id}");
        match self
            .client
            .snapshots()
            .mounts(self.client.request(request.clone()))
            .await
        {
            Err(status) if status.code() == Code::NotFound => {}
            answer => return Ok(answer.calling(what)?.into_inner().mounts),
        }
        let root = timestamp(OffsetDateTime::now_utc());
        let labels = HashMap::from([("containerd.io/gc.root".to_owned(), root)]);
        let parent = chain_id.to_owned();
        let view = ViewSnapshotRequest {
            snapshotter,
            key,
            parent,
            labels,
        };
        match self
            .client
            .snapshots()
            .view(self.client.request(view))
            .await
        {
            // Another caller was quicker.
            Err(status) if status.code() == Code::AlreadyExists => {
                let answer = self
                    .client
                    .snapshots()
                    .mounts(self.client.request(request))
                    .await;
                Ok(answer.calling(what)?.into_inner().mounts)
            }
            answer => Ok(answer.calling(what)?.into_inner().mounts),
        }
    }

    /// The chain ids that have a view.
    async fn views(&self) -> Result<Vec<String>, CallError> {
        let what = || "list snapshots".to_owned();
        let snapshotter = self.client.snapshotter().to_owned();
        let request = ListSnapshotsRequest {
            snapshotter,
            ..Default::default()
        };
        let answer = self
            .client
            .snapshots()
            .list(self.client.request(request))
            .await;
        let mut answers = answer.calling(what)?.into_inner();
        let mut found = Vec::new();
        while let Some(answer) = answers.message().await.calling(what)? {
            let names = answer.info.iter().map(|info| info.name.as_str());
            found.extend(
                names
                    .filter_map(|n| n.strip_prefix(VIEW))
                    .map(str::to_owned),
            );
        }
        Ok(found)
    }

    async fn forget_view(&self, chain_id: &str) -> Result<(), CallError> {
        self.layers
            .lock()
            .expect("no holder panics")
            .remove(chain_id);
        unpack::remove(&self.client, &view_key(chain_id)).await
    }
}

/// Reads manifest and config behind an image's target, which may be an index.
pub(crate) async fn documents(
    client: &Client,
    reference: &Reference,
    target: &str,
) -> Result<Documents, StoreError> {
    let (mut digest, mut document) = (target.to_owned(), fetch(client, reference, target).await?);
    let mut labels = Vec::new();
    // An index may hold an index, as builders make them; a third level has no use.
    for _ in 0..2 {
        let Document::Index(index) = &document else {
            break;
        };
        let chosen = index.choose(&format!("index {digest}"))?.digest.clone();
        labels.push((digest, document.gc_labels(&chosen)));
        document = fetch(client, reference, &chosen).await?;
        digest = chosen;
    }
    labels.push((digest.clone(), document.gc_labels("")));
    let Document::Manifest(manifest) = document else {
        let problem = "leads to no manifest".to_owned();
        return Err(DocumentError::Invalid {
            what: format!("index {digest}"),
            problem,
        }
        .into());
    };
    let config_digest = &manifest.config.digest;
    let config = required(client, reference, config_digest).await?;
    let config = ConfigFile::parse(config_digest, &config)?;
    if let Some(chain_id) = config.chain_ids().pop() {
        let key = format!("containerd.io/gc.ref.snapshot.{}", client.snapshotter());
        labels.push((config_digest.clone(), HashMap::from([(key, chain_id)])));
    }
    Ok(Documents {
        labels,
        digest,
        manifest,
        config,
    })
}

async fn fetch(
    client: &Client,
    reference: &Reference,
    digest: &str,
) -> Result<Document, StoreError> {
    let bytes = required(client, reference, digest).await?;
    Ok(Document::parse(&format!("manifest {digest}"), &bytes)?)
}

async fn required(
    client: &Client,
    reference: &Reference,
    digest: &str,
) -> Result<Vec<u8>, StoreError> {
    content::read(client, digest)
        .await?
        .ok_or_else(|| StoreError::Incomplete {
            reference: reference.clone(),
            digest: digest.to_owned(),
        })
}

impl Image {
    pub(crate) fn new(reference: Reference, documents: Documents) -> Self {
        let Documents {
            digest,
            manifest,
            config,
            ..
        } = documents;
        let chain_id = config.chain_ids().pop().unwrap_or_default();
        let run = config.config.unwrap_or_default();
        let layers: u64 = manifest
            .layers
            .iter()
            .map(|l| l.size)
            .fold(0, u64::saturating_add);
        Self {
            reference,
            digest,
            chain_id,
            size_bytes: layers.saturating_add(manifest.config.size),
            created: config.created,
            config: ImageConfig {
                env: run.env.unwrap_or_default(),
                entrypoint: run.entrypoint.unwrap_or_default(),
                cmd: run.cmd.unwrap_or_default(),
                working_dir: run.working_dir,
                user: run.user,
                labels: run.labels.unwrap_or_default(),
                stop_signal: run.stop_signal,
            },
        }
    }
}

const VIEW: &str = "opr-view ";

fn view_key(chain_id: &str) -> String {
    format!("{VIEW}{chain_id}")
}

/// The lower directories in a view's mount: `lowerdir=a:b` of an overlay, or the source of a bind.
fn lower_dirs(client: &Client, mounts: Vec<Mount>) -> Result<Vec<PathBuf>, StoreError> {
    let kind = mounts
        .iter()
        .map(|m| m.r#type.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    let lower = match mounts.as_slice() {
        [one] if one.r#type == "bind" => Some(vec![PathBuf::from(&one.source)]),
        [one] if one.r#type == "overlay" => {
            let option = one.options.iter().find_map(|o| o.strip_prefix("lowerdir="));
            option.map(|dirs| dirs.split(':').map(PathBuf::from).collect())
        }
        _ => None,
    };
    let snapshotter = client.snapshotter().to_owned();
    lower.ok_or(StoreError::Layers { snapshotter, kind })
}
