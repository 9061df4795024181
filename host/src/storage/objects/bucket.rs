//! Files in an S3-compatible bucket.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use futures_util::StreamExt as _;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, Error, GetOptions, GetResult, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as Key,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{Bytes, Fetched, Incoming, ObjectError, S3, blocking, disk, normal};
use crate::id::Digest;

/// A larger file goes in parts of this size, each of which has to be there within the patience.
const PART: usize = 8 * 1024 * 1024;
/// The digest of an object's content, kept with it.
const SUM: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("sha256"));

#[derive(Debug)]
pub(super) struct Bucket {
    store: AmazonS3,
    name: Option<String>,
    patience: Duration,
}

impl Bucket {
    pub(super) fn new(settings: &S3, patience: Duration) -> Result<Self, ObjectError> {
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(500),
                max_backoff: Duration::from_secs(20),
                base: 2.0,
            },
            max_retries: 3,
            retry_timeout: patience,
        };
        // A transfer's time depends on its size: what bounds it is the patience.
        let client = ClientOptions::new()
            .with_allow_http(true)
            .with_timeout_disabled()
            .with_read_timeout_disabled();
        let store = AmazonS3Builder::new()
            .with_endpoint(&settings.endpoint)
            .with_bucket_name(settings.bucket.as_deref().unwrap_or("the host's"))
            .with_virtual_hosted_style_request(settings.bucket.is_none())
            .with_region(&settings.region)
            .with_access_key_id(&settings.key)
            .with_secret_access_key(&settings.secret)
            .with_client_options(client)
            .with_retry(retry)
            .build();
        Ok(Self {
            store: store.map_err(|source| ObjectError::Remote {
                what: "use",
                path: settings.endpoint.clone(),
                source,
            })?,
            name: settings.bucket.clone(),
            patience,
        })
    }

    pub(super) fn told(&self, key: String) -> String {
        match &self.name {
            Some(name) => format!("{name}/{key}"),
            None => format!("/{key}"),
        }
    }

    pub(super) async fn fetch(
        &self,
        path: &str,
        target: &Path,
        limit: u64,
        known: Option<&str>,
    ) -> Result<Option<Fetched>, ObjectError> {
        let options = GetOptions {
            // A server that tells no versions has none to compare.
            if_none_match: known.filter(|known| !known.is_empty()).map(Into::into),
            ..GetOptions::default()
        };
        let Some(found) = self.find(path, options).await? else {
            return Ok(None);
        };
        let version = found.meta.e_tag.clone().unwrap_or_default();
        let size = found.meta.size;
        if size > limit {
            let path = path.to_owned();
            return Err(ObjectError::TooLarge { path, limit });
        }
        let expected = found.attributes.get(&SUM).map(|sum| sum.to_string());
        let mut pieces = found.into_stream();
        let (sender, mut arrived) = mpsc::channel::<Bytes>(16);
        let reading = async move {
            while let Some(piece) = self.within(path, pieces.next()).await? {
                let piece = piece.map_err(|source| remote("read", path, source))?;
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let mut incoming = Incoming::new(path, target, limit)?;
        let writing = blocking(move || {
            while let Some(piece) = arrived.blocking_recv() {
                incoming.add(&piece)?;
            }
            Ok(incoming)
        });
        let (read, incoming) = tokio::join!(reading, writing);
        read?;
        incoming?.finish(version, expected.as_deref()).map(Some)
    }

    pub(super) async fn store(&self, from: &Path, path: &str) -> Result<u64, ObjectError> {
        let key = self.keys(path)?.remove(0);
        let remote = |source| remote("write", path, source);
        let (file, sum) = blocking({
            let from = from.to_owned();
            move || sum(&from)
        })
        .await?;
        let (first, mut file) = part(file, from).await?;
        let attributes = Attributes::from_iter([(SUM, sum.hex().to_owned())]);
        if first.len() < PART {
            let size = first.len() as u64;
            let put = self.store.put_opts(
                &key,
                PutPayload::from_bytes(first),
                PutOptions::from(attributes),
            );
            self.within(path, put).await?.map_err(remote)?;
            return Ok(size);
        }
        let options = PutMultipartOptions::from(attributes);
        let begun = self.store.put_multipart_opts(&key, options);
        let mut upload = self.within(path, begun).await?.map_err(remote)?;
        let sent = async {
            let (mut bytes, mut size) = (first, 0);
            while !bytes.is_empty() {
                size += bytes.len() as u64;
                let put = upload.put_part(PutPayload::from_bytes(bytes));
                self.within(path, put).await?.map_err(remote)?;
                (bytes, file) = part(file, from).await?;
            }
            self.within(path, upload.complete())
                .await?
                .map_err(remote)?;
            Ok(size)
        }
        .await;
        if sent.is_err() {
            // The error that counts is the first.
            let _ = self.within(path, upload.abort()).await;
        }
        sent
    }

    /// The object under the first of a path's keys that there is; none where the caller knows it.
    async fn find(
        &self,
        path: &str,
        options: GetOptions,
    ) -> Result<Option<GetResult>, ObjectError> {
        for key in self.keys(path)? {
            let found = self.within(path, self.store.get_opts(&key, options.clone()));
            match found.await? {
                Ok(found) => return Ok(Some(found)),
                Err(Error::NotModified { .. }) => return Ok(None),
                Err(Error::NotFound { .. }) => {}
                Err(source) => return Err(remote("read", path, source)),
            }
        }
        Err(ObjectError::Missing {
            path: path.to_owned(),
        })
    }

    /// The keys that a path may mean: it may have the bucket's name before it.
    fn keys(&self, path: &str) -> Result<Vec<Key>, ObjectError> {
        let whole = normal(path);
        let prefix = self.name.as_ref().map(|name| format!("{name}/"));
        let inner = prefix.and_then(|prefix| whole.strip_prefix(&prefix));
        let keys = inner.into_iter().chain([whole.as_str()]);
        keys.map(|key| {
            Key::parse(key).map_err(|source| ObjectError::Path {
                path: path.to_owned(),
                source,
            })
        })
        .collect()
    }

    async fn within<T>(&self, path: &str, step: impl Future<Output = T>) -> Result<T, ObjectError> {
        let patience = self.patience;
        let done = tokio::time::timeout(patience, step).await;
        done.map_err(|_| ObjectError::Stalled {
            path: path.to_owned(),
            patience,
        })
    }
}

/// The next [`PART`] bytes of a file; fewer at its end.
async fn part(mut file: File, from: &Path) -> Result<(Bytes, File), ObjectError> {
    let from = from.to_owned();
    blocking(move || {
        let mut bytes = Vec::new();
        let read = file.by_ref().take(PART as u64).read_to_end(&mut bytes);
        read.map_err(disk("read", &from))?;
        Ok((bytes.into(), file))
    })
    .await
}

fn sum(path: &Path) -> Result<(File, Digest), ObjectError> {
    let read = || -> io::Result<_> {
        let mut file = File::open(path)?;
        let mut sum = Sha256::new();
        io::copy(&mut file, &mut sum)?;
        io::Seek::rewind(&mut file)?;
        Ok((file, Digest::from_sha256(sum.finalize().into())))
    };
    read().map_err(disk("read", path))
}

fn remote(what: &'static str, path: &str, source: Error) -> ObjectError {
    let path = path.to_owned();
    ObjectError::Remote { what, path, source }
}
