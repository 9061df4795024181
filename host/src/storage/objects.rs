//! Files by path on a storage device: the sources of functions, what builds leave, and their caches.
//!
//! Paths are a client's words. On this machine they are absolute paths. In a bucket they are keys, where a leading `/`
//! does not count, and where the bucket's own name may stand before the key or not.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::{
    config::{Device, S3},
    id::Digest,
};
use bucket::Bucket;

mod bucket;
#[cfg(test)]
mod tests;

/// How long a transfer may go without progress.
const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK: usize = 256 * 1024;

/// The files of one storage device.
#[derive(Debug, Clone)]
pub struct Objects {
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Local,
    Bucket(Arc<Bucket>),
}

/// A file that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its bytes.
    pub size_bytes: u64,
    /// Its content's digest.
    pub digest: Digest,
    /// A text that changes when the file does.
    pub version: String,
}

/// A file could not be fetched or stored.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is none.
    #[error("{path} is not in the storage")]
    Missing {
        /// Its path.
        path: String,
    },
    /// It is a folder or a device.
    #[error("{path} is no regular file")]
    Kind {
        /// Its path.
        path: String,
    },
    /// It cannot be a key of a bucket.
    #[error("{path:?} cannot be a path in the storage")]
    Path {
        /// The path.
        path: String,
        /// Why.
        source: object_store::path::Error,
    },
    /// It has too many bytes.
    #[error("{path} has more than {limit} bytes")]
    TooLarge {
        /// Its path.
        path: String,
        /// The limit.
        limit: u64,
    },
    /// It is not what was stored under this path.
    #[error("{path} is damaged: its digest is {found}, but {expected} was stored")]
    Damaged {
        /// Its path.
        path: String,
        /// As it was stored.
        expected: String,
        /// As it came.
        found: Digest,
    },
    /// Nothing moved for too long.
    #[error("the storage was silent about {path} for {} s", .patience.as_secs_f64())]
    Stalled {
        /// Its path.
        path: String,
        /// For how long.
        patience: Duration,
    },
    /// The bucket refused, or is not there.
    #[error("the storage could not {what} {path}")]
    Remote {
        /// What.
        what: &'static str,
        /// Of what.
        path: String,
        /// Why.
        source: object_store::Error,
    },
    /// The disk refused.
    #[error("cannot {what} {path}")]
    Disk {
        /// What.
        what: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ObjectError {
    /// Whether no file can be had under the path, however often it is asked for.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::Kind { .. } | Self::Path { .. } => true,
            Self::TooLarge { .. }
            | Self::Damaged { .. }
            | Self::Stalled { .. }
            | Self::Remote { .. }
            | Self::Disk { .. } => false,
        }
    }
}

impl Objects {
    /// The files of this device. Connects to nothing.
    ///
    /// # Errors
    /// The device cannot be used.
    pub fn new(device: &Device) -> Result<Self, ObjectError> {
        Self::with_patience(device, PATIENCE)
    }

    fn with_patience(device: &Device, patience: Duration) -> Result<Self, ObjectError> {
        let backend = match device {
            Device::Local => Backend::Local,
            Device::S3(settings) => Backend::Bucket(Arc::new(Bucket::new(settings, patience)?)),
        };
        Ok(Self { backend })
    }

    /// What a client is told of a new file `name` below `root`.
    pub fn path(&self, root: &str, name: &str) -> String {
        let path = normal(&format!("{root}/{name}"));
        match &self.backend {
            Backend::Local => format!("/{path}"),
            Backend::Bucket(bucket) => bucket.told(path),
        }
    }

    /// Copies a file to `target`, which is there as a whole or not at all. Its mode is 0600.
    ///
    /// # Errors
    /// See [`ObjectError`].
    pub async fn fetch(
        &self,
        path: &str,
        target: &Path,
        limit: u64,
    ) -> Result<Fetched, ObjectError> {
        let fetched = self.fetch_newer(path, target, limit, None).await?;
        Ok(fetched.expect("every version is newer than none"))
    }

    /// As [`Objects::fetch`], where the file is not of the version `known`.
    ///
    /// # Errors
    /// See [`ObjectError`].
    pub async fn fetch_newer(
        &self,
        path: &str,
        target: &Path,
        limit: u64,
        known: Option<&str>,
    ) -> Result<Option<Fetched>, ObjectError> {
        match &self.backend {
            Backend::Local => {
                let (path, target) = (path.to_owned(), target.to_owned());
                let known = known.map(ToOwned::to_owned);
                blocking(move || {
                    let (source, version) = open(&path)?;
                    if known.as_ref() == Some(&version) {
                        return Ok(None);
                    }
                    let incoming = Incoming::new(&path, &target, limit)?.all(source)?;
                    incoming.finish(version, None).map(Some)
                })
                .await
            }
            Backend::Bucket(bucket) => bucket.fetch(path, target, limit, known).await,
        }
    }

    /// Copies the file `from` to a path, in place of what is there. Answers its bytes.
    ///
    /// # Errors
    /// See [`ObjectError`]; then what was there before still is.
    pub async fn store(&self, from: &Path, path: &str) -> Result<u64, ObjectError> {
        match &self.backend {
            Backend::Local => {
                let (from, path) = (from.to_owned(), path.to_owned());
                blocking(move || store(&from, &path)).await
            }
            Backend::Bucket(bucket) => bucket.store(from, path).await,
        }
    }
}

/// A file that arrives piece by piece, beside its target until all of it is there.
struct Incoming {
    path: String,
    target: PathBuf,
    file: NamedTempFile,
    sum: Sha256,
    size: u64,
    limit: u64,
}

impl Incoming {
    fn new(path: &str, target: &Path, limit: u64) -> Result<Self, ObjectError> {
        let folder = target.parent().unwrap_or(Path::new("/"));
        Ok(Self {
            path: path.to_owned(),
            target: target.to_owned(),
            file: NamedTempFile::new_in(folder).map_err(disk("write into", folder))?,
            sum: Sha256::new(),
            size: 0,
            limit,
        })
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        self.size += bytes.len() as u64;
        if self.size > self.limit {
            return Err(ObjectError::TooLarge {
                path: self.path.clone(),
                limit: self.limit,
            });
        }
        self.sum.update(bytes);
        io::Write::write_all(&mut self.file, bytes).map_err(disk("write", &self.target))
    }

    fn all(mut self, mut source: impl Read) -> Result<Self, ObjectError> {
        let mut chunk = vec![0; CHUNK];
        loop {
            match source.read(&mut chunk) {
                Ok(0) => return Ok(self),
                Ok(n) => self.add(&chunk[..n])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(disk("read", Path::new(&self.path))(error)),
            }
        }
    }

    /// Puts the file to its place; `expected` is its digest where that is known.
    fn finish(self, version: String, expected: Option<&str>) -> Result<Fetched, ObjectError> {
        let digest = Digest::from_sha256(self.sum.finalize().into());
        if let Some(expected) = expected.filter(|expected| *expected != digest.hex()) {
            return Err(ObjectError::Damaged {
                path: self.path,
                expected: format!("sha256:{expected}"),
                found: digest,
            });
        }
        let kept = self.file.persist(&self.target);
        kept.map_err(|error| disk("write", &self.target)(error.error))?;
        Ok(Fetched {
            size_bytes: self.size,
            digest,
            version,
        })
    }
}

/// Opens a regular file, and answers its version. Without NONBLOCK, opening a FIFO would wait for its writer.
fn open(path: &str) -> Result<(File, String), ObjectError> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ObjectError::Missing {
            path: path.to_owned(),
        },
        _ => disk("open", Path::new(path))(error),
    })?;
    let meta = file.metadata().map_err(disk("read", Path::new(path)))?;
    if !meta.is_file() {
        let path = path.to_owned();
        return Err(ObjectError::Kind { path });
    }
    // A write within one tick of the clock changes the size or nothing that could be seen.
    let version = format!(
        "{}:{} {} {}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.ctime(),
        meta.ctime_nsec(),
    );
    Ok((file, version))
}

fn store(from: &Path, path: &str) -> Result<u64, ObjectError> {
    let target = PathBuf::from(format!("/{}", normal(path)));
    let folder = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(disk("make", folder))?;
    let mut source = File::open(from).map_err(disk("read", from))?;
    let written = NamedTempFile::new_in(folder).and_then(|mut file| {
        let size = io::copy(&mut source, &mut file)?;
        // Clients that share the folder read it as another user.
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(&target)?;
        Ok(size)
    });
    written.map_err(disk("write", &target))
}

/// A path without empty parts, `.` and `..`, and without a leading `/`.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ObjectError {
    let path = path.to_owned();
    move |source| ObjectError::Disk { what, path, source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ObjectError> + Send + 'static,
) -> Result<T, ObjectError> {
    tokio::task::spawn_blocking(work)
        .await
        .expect("file operations do not panic")
}
