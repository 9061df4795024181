//! Images from a registry: documents first, then up to four layers at once, each unpacked as soon as
//! it and its parents are there.
//!
//! What fails for a reason that passes (a broken connection, a busy registry) is tried again, later
//! each time; a layer that was cut off goes on where it ended, and as long as bytes come in nobody
//! gives up.

use std::{
    collections::HashMap,
    sync::{Mutex, Weak},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::{
    Credentials, Image, Images, Reference,
    client::CallError,
    content::{self, WriteError, Writer},
    document::{Descriptor, Document, DocumentError, digest_of},
    lease::Lease,
    progress::{LayerState, Progress},
    registry::{Failure, Registry},
    store::{Documents, StoreError, documents},
    unpack::{self, UnpackError, Unpacker},
};

/// Layers that come in at the same time.
const PARALLEL: usize = 4;
/// How much of a blob is sent to containerd at once.
const PIECE: usize = 256 << 10;
/// Failures in a row before giving up.
const MAX_FAILURES: u32 = 6;
/// The wait after the first failure; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// No wait is longer, whatever the registry asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// An image could not be pulled. What had come in by then is garbage that containerd collects.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry cannot be reached, or the connection broke again and again.
    #[error("cannot reach registry {registry}")]
    Connection {
        /// Its host and port.
        registry: String,
        /// Why.
        source: Box<reqwest::Error>,
    },
    /// The registry wants other credentials.
    #[error("not authorized to pull {reference}")]
    Unauthorized {
        /// The image.
        reference: Reference,
        /// What the token service said.
        source: Option<Box<oci_client::errors::OciDistributionError>>,
    },
    /// The registry does not have it.
    #[error("the registry has no {path} of {reference}")]
    Absent {
        /// The image.
        reference: Reference,
        /// What was asked for, as in `manifests/v5-22`.
        path: String,
    },
    /// The registry refuses or fails, also when asked again.
    #[error("the registry answers {status} for {reference}: {message}")]
    Status {
        /// The image.
        reference: Reference,
        /// The HTTP status.
        status: u16,
        /// The beginning of its answer.
        message: String,
    },
    /// The bytes are not those of the digest.
    #[error("the registry sent {found} for {expected} of {reference}")]
    Mismatch {
        /// The image.
        reference: Reference,
        /// The digest asked for.
        expected: String,
        /// What came.
        found: String,
    },
    /// The registry keeps ending a blob before its size.
    #[error("the registry ends {digest} of {reference} after {done} of {size} bytes")]
    Truncated {
        /// The image.
        reference: Reference,
        /// The blob.
        digest: String,
        /// Bytes that came.
        done: u64,
        /// Bytes it should have.
        size: u64,
    },
    /// A manifest or config is larger than any is.
    #[error("{name} of {reference} is larger than 4 MiB")]
    TooLarge {
        /// The image.
        reference: Reference,
        /// The document.
        name: String,
    },
    /// A document cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Its layers cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// What is here cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// containerd refused a step.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Images {
    /// The image, pulled only if it is not here.
    ///
    /// # Errors
    /// As [`Images::pull`].
    pub async fn ensure(
        &self,
        reference: &Reference,
        auth: &Credentials,
        progress: &dyn Progress,
    ) -> Result<Image, PullError> {
        match self.get(reference).await {
            Ok(Some(image)) if self.is_unpacked(&image).await? => Ok(image),
            Err(StoreError::Call(error)) => Err(error.into()),
            Ok(_) | Err(_) => self.pull(reference, auth, progress).await,
        }
    }

    /// Pulls the image, also when it is here already, since its tag may have moved on. Layers that
    /// are here are not fetched again.
    ///
    /// # Errors
    /// When the registry has it not, lets us not in, or sends something else; when containerd fails.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: &Credentials,
        progress: &dyn Progress,
    ) -> Result<Image, PullError> {
        let is_insecure = reference.is_loopback() || self.insecure.contains(reference.registry());
        let registry = Registry::new(reference, auth, is_insecure)?;
        let lease = Lease::create(&self.client, "pull").await?;
        let pull = Pull {
            images: self,
            registry,
            reference,
            lease: &lease,
            progress,
        };
        let target = pull.documents().await?;
        let documents = documents(&self.client, reference, &target.digest).await?;
        pull.layers(&documents).await?;
        drop(pull);
        Ok(self.record(lease, reference, &target, documents).await?)
    }

    async fn is_unpacked(&self, image: &Image) -> Result<bool, CallError> {
        Ok(image.chain_id.is_empty() || unpack::exists(&self.client, &image.chain_id).await?)
    }
}

/// One pull at work.
struct Pull<'a> {
    images: &'a Images,
    registry: Registry,
    reference: &'a Reference,
    lease: &'a Lease,
    progress: &'a dyn Progress,
}

impl Pull<'_> {
    /// Fetches index, manifest and config into the content store; answers what the name stands for.
    async fn documents(&self) -> Result<Descriptor, PullError> {
        let name = self
            .reference
            .digest()
            .or(self.reference.tag())
            .unwrap_or("latest");
        let mut target = None;
        let mut name = name.to_owned();
        for _ in 0..3 {
            let (bytes, media_type) = retried(|| self.registry.manifest(&name)).await?;
            let digest = digest_of(&bytes);
            self.write(&digest, &bytes).await?;
            let size = bytes.len() as u64;
            let document = Document::parse(&format!("manifest {digest}"), &bytes)?;
            let media_type = document.media_type(&media_type);
            target.get_or_insert(Descriptor {
                media_type,
                digest,
                size,
                ..Default::default()
            });
            match document {
                Document::Index(index) => {
                    name = index
                        .choose(&format!("index of {}", self.reference))?
                        .digest
                        .clone();
                }
                Document::Manifest(manifest) => {
                    let digest = &manifest.config.digest;
                    let bytes = match content::read(&self.images.client, digest).await? {
                        Some(bytes) => bytes,
                        None => retried(|| self.registry.config(digest)).await?,
                    };
                    self.write(digest, &bytes).await?;
                    break;
                }
            }
        }
        Ok(target.expect("the loop runs at least once"))
    }

    /// Fetches the layers and unpacks them, both at the same time.
    async fn layers(&self, documents: &Documents) -> Result<(), PullError> {
        let Documents {
            manifest, config, ..
        } = documents;
        let unpacker = Unpacker::new(&self.images.client, self.lease, manifest, config)?;
        let (arrived, arrivals): (Vec<_>, Vec<_>) =
            manifest.layers.iter().map(|_| oneshot::channel()).unzip();
        for layer in &manifest.layers {
            self.progress.layer(&layer.digest, LayerState::Waiting);
        }
        let fetches: Vec<BoxFuture<'_, Result<(), PullError>>> = manifest
            .layers
            .iter()
            .zip(arrived)
            .map(|(layer, arrived)| self.layer_then_tell(layer, arrived).boxed())
            .collect();
        let fetch = stream::iter(fetches)
            .buffer_unordered(PARALLEL)
            .try_collect::<()>();
        let unpack = async {
            for (index, arrival) in arrivals.into_iter().enumerate() {
                if arrival.await.is_ok() {
                    unpacker.unpack(index, self.progress).await?;
                }
            }
            Ok(())
        };
        tokio::try_join!(fetch, unpack).map(drop)
    }

    async fn layer_then_tell(
        &self,
        layer: &Descriptor,
        arrived: oneshot::Sender<()>,
    ) -> Result<(), PullError> {
        self.layer(layer).await?;
        // The other end is gone only when unpacking failed, which ends this as well.
        let _ = arrived.send(());
        Ok(())
    }

    /// Fetches one layer, trying again as long as it gets further.
    async fn layer(&self, layer: &Descriptor) -> Result<(), PullError> {
        let _alone = self.images.ingests.lock(&layer.digest).await;
        let (mut failures, mut best) = (0, 0);
        loop {
            let mut done = 0;
            let Err(failure) = self.attempt(layer, &mut done).await else {
                return Ok(());
            };
            if done > best {
                (failures, best) = (0, done);
            }
            failures += 1;
            pause(failure, failures).await?;
        }
    }

    /// One attempt at a layer; `done` is how far it got.
    async fn attempt(&self, layer: &Descriptor, done: &mut u64) -> Result<(), Failure> {
        let (client, digest) = (&self.images.client, layer.digest.as_str());
        let name = format!("layer-{digest}");
        let opened = Writer::open(client, self.lease, &name, Some((digest, layer.size))).await;
        let Some(mut writer) = opened.map_err(busy)? else {
            return Ok(());
        };
        if writer.offset() > layer.size {
            writer.abort().await;
            return Err(self.truncated(layer, 0));
        }
        // What an earlier attempt left may be at fault for a mismatch; then a fresh start helps.
        let retry = (writer.offset() > 0).then_some(Duration::ZERO);
        if writer.offset() < layer.size {
            let fetched = self.fetch(layer, &mut writer).await;
            *done = writer.offset();
            match fetched {
                Err(failure) if matches!(failure.error, PullError::Mismatch { .. }) => {
                    writer.abort().await;
                    return Err(Failure { retry, ..failure });
                }
                other => other?,
            }
        }
        if writer.offset() < layer.size {
            return Err(self.truncated(layer, writer.offset()));
        }
        let label = format!(
            "containerd.io/distribution.source.{}",
            self.reference.registry()
        );
        let labels = HashMap::from([(label, self.reference.repository().to_owned())]);
        match writer.commit(Some(digest), labels).await {
            Ok(_) => Ok(()),
            Err(WriteError::Call(call)) => Err(busy(call)),
            Err(WriteError::Mismatch { expected }) => Err(Failure {
                retry,
                ..self.mismatch(expected)
            }),
        }
    }

    /// Appends what the ingest lacks.
    async fn fetch(&self, layer: &Descriptor, writer: &mut Writer) -> Result<(), Failure> {
        let from = writer.offset();
        let (mut response, start) = self.registry.blob(&layer.digest, from).await?;
        if start > from {
            return Err(self.truncated(layer, from));
        }
        let mut skip = from - start;
        let mut piece = Vec::with_capacity(PIECE);
        loop {
            let next = response.chunk().await;
            let is_last = !matches!(next, Ok(Some(_)));
            if let Ok(Some(bytes)) = &next {
                let cut = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
                skip -= cut as u64;
                piece.extend_from_slice(&bytes[cut..]);
                if writer.offset() + piece.len() as u64 > layer.size {
                    return Err(self.mismatch(layer.digest.clone()));
                }
            }
            if piece.len() >= PIECE || (is_last && !piece.is_empty()) {
                writer
                    .write(std::mem::take(&mut piece))
                    .await
                    .map_err(busy)?;
                let state = LayerState::Downloading {
                    done: writer.offset(),
                    total: layer.size,
                };
                self.progress.layer(&layer.digest, state);
            }
            match next {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.registry.broken(error)),
            }
        }
    }

    async fn write(&self, digest: &str, bytes: &[u8]) -> Result<(), PullError> {
        let _alone = self.images.ingests.lock(digest).await;
        let blob = (digest, bytes);
        match content::write_all(&self.images.client, self.lease, blob, HashMap::new()).await {
            Ok(()) => Ok(()),
            Err(WriteError::Call(call)) => Err(call.into()),
            Err(WriteError::Mismatch { expected }) => Err(self.mismatch(expected).error),
        }
    }

    fn truncated(&self, layer: &Descriptor, done: u64) -> Failure {
        let (reference, digest) = (self.reference.clone(), layer.digest.clone());
        let error = PullError::Truncated {
            reference,
            digest,
            done,
            size: layer.size,
        };
        Failure {
            error,
            retry: Some(Duration::ZERO),
        }
    }

    fn mismatch(&self, expected: String) -> Failure {
        let found = "other bytes".to_owned();
        PullError::Mismatch {
            reference: self.reference.clone(),
            expected,
            found,
        }
        .into()
    }
}

/// containerd is away for a moment, or another process writes the same blob: both pass.
fn busy(error: CallError) -> Failure {
    let passes = error.source.code() == containerd_client::tonic::Code::Unavailable;
    Failure {
        error: error.into(),
        retry: passes.then_some(Duration::ZERO),
    }
}

/// Repeats `attempt` while it fails for a reason that passes.
async fn retried<T, F: Future<Output = Result<T, Failure>>>(
    attempt: impl Fn() -> F,
) -> Result<T, PullError> {
    let mut failures = 0;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(failure) => {
                failures += 1;
                pause(failure, failures).await?;
            }
        }
    }
}

/// Waits before the next attempt, or gives up.
async fn pause(failure: Failure, failures: u32) -> Result<(), PullError> {
    let Failure {
        error,
        retry: Some(asked),
    } = failure
    else {
        return Err(failure.error);
    };
    if failures >= MAX_FAILURES {
        return Err(error);
    }
    let wait = wait_after(failures, asked);
    tracing::info!(%error, failures, wait_ms = wait.as_millis(), "pull paused");
    tokio::time::sleep(wait).await;
    Ok(())
}

/// The wait after so many failures in a row, of which the registry wants `asked` at least.
fn wait_after(failures: u32, asked: Duration) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << (failures - 1).min(16));
    doubled.max(asked).min(LONGEST_WAIT)
}

/// Lets one task of this process write a digest at a time: the next then finds it there.
#[derive(Debug, Default)]
pub(crate) struct Ingests(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Ingests {
    async fn lock(&self, digest: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().expect("no holder panics");
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(digest).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let fresh = std::sync::Arc::default();
                locks.insert(digest.to_owned(), std::sync::Arc::downgrade(&fresh));
                fresh
            })
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(failures: u32, asked_ms: u64, expected_ms: u64) {
        let wait = wait_after(failures, Duration::from_millis(asked_ms));
        assert_eq!(wait, Duration::from_millis(expected_ms));
    }

    #[test]
    fn waits_double_heed_the_registry_and_end() {
        check(1, 0, 250);
        check(2, 0, 500);
        check(5, 0, 4_000);
        check(1, 3_000, 3_000);
        check(1, 3_600_000, 60_000);
        check(60, 0, 60_000);
    }

    #[tokio::test]
    async fn one_writer_a_digest() {
        let ingests = Ingests::default();
        let first = ingests.lock("a").await;
        let _other = ingests.lock("b").await;
        let waiting = tokio::time::timeout(Duration::from_millis(10), ingests.lock("a"));
        assert!(waiting.await.is_err());
        drop(first);
        ingests.lock("a").await;
        assert_eq!(ingests.0.lock().unwrap().len(), 2);
    }
}
