//! An OCI layout in a directory: only what its index leads to is read, beneath the directory.

use std::{fs::File, io::Read as _, os::fd::OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use tokio::io::AsyncReadExt as _;

use super::{Found, Import, ImportError};
use crate::{
    content::{self, MAX_DOCUMENT, Writer},
    document::{Descriptor, Document, digest_of},
    lease::Lease,
    progress::LayerState,
};

/// How much of a blob is sent to containerd at once.
const PIECE: usize = 256 << 10;

impl Import<'_> {
    /// Reads the layout and puts the blobs for this machine into the content store.
    pub(super) async fn layout(&self, lease: &Lease) -> Result<Vec<Found>, ImportError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, self.path, flags, Mode::empty())
            .map_err(|errno| self.unreadable(errno.into()))?;
        self.document(&dir, "oci-layout")?
            .ok_or_else(|| self.no_images("it has no oci-layout file"))?;
        let index = self
            .document(&dir, "index.json")?
            .ok_or_else(|| self.no_images("it has no index.json"))?;
        let found = self.listed(&index)?;
        for Found { target, .. } in &found {
            self.walk(lease, &dir, target).await?;
        }
        Ok(found)
    }

    /// Copies a target and all it leads to.
    async fn walk(
        &self,
        lease: &Lease,
        dir: &OwnedFd,
        target: &Descriptor,
    ) -> Result<(), ImportError> {
        let mut target = target.clone();
        for _ in 0..3 {
            let bytes = self.copy_document(lease, dir, &target).await?;
            match Document::parse(&format!("manifest {}", target.digest), &bytes)? {
                Document::Index(index) => {
                    target = index.choose(&format!("index {}", target.digest))?.clone();
                }
                Document::Manifest(manifest) => {
                    self.copy_document(lease, dir, &manifest.config).await?;
                    for layer in &manifest.layers {
                        self.copy_layer(lease, dir, layer).await?;
                    }
                    return Ok(());
                }
            }
        }
        Err(self.no_images("its index leads to no manifest"))
    }

    async fn copy_document(
        &self,
        lease: &Lease,
        dir: &OwnedFd,
        blob: &Descriptor,
    ) -> Result<Vec<u8>, ImportError> {
        let bytes = self.document(dir, &blob_path(blob))?;
        let bytes = bytes.ok_or_else(|| self.missing(&blob.digest))?;
        if bytes.len() as u64 != blob.size || digest_of(&bytes) != blob.digest {
            return Err(self.mismatch(&blob.digest));
        }
        let client = &self.images.client;
        let written = content::write_all(client, lease, (&blob.digest, &bytes), Default::default());
        written.await.map_err(|error| self.writing(error))?;
        Ok(bytes)
    }

    async fn copy_layer(
        &self,
        lease: &Lease,
        dir: &OwnedFd,
        layer: &Descriptor,
    ) -> Result<(), ImportError> {
        let file = self.open(dir, &blob_path(layer))?;
        let (file, size) = file.ok_or_else(|| self.missing(&layer.digest))?;
        if size != layer.size {
            return Err(self.mismatch(&layer.digest));
        }
        let client = &self.images.client;
        let name = format!("opr-{}", layer.digest);
        let expected = Some((layer.digest.as_str(), size));
        let Some(mut writer) = Writer::open(client, lease, &name, expected).await? else {
            return Ok(());
        };
        let mut file = tokio::fs::File::from_std(file).take(size);
        let mut begin = 0;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = (&mut file).take(PIECE as u64).read_to_end(&mut piece).await;
            if read.map_err(|source| self.unreadable(source))? == 0 {
                break;
            }
            let length = piece.len() as u64;
            writer.write_from(begin, piece).await?;
            begin += length;
            let done = writer.offset();
            self.progress
                .layer(&layer.digest, LayerState::Downloading { done, total: size });
        }
        let committed = writer.commit(Some(&layer.digest), Default::default()).await;
        committed.map(drop).map_err(|error| self.writing(error))
    }

    /// The bytes of a small file in the layout; `None` where there is none.
    fn document(&self, dir: &OwnedFd, name: &str) -> Result<Option<Vec<u8>>, ImportError> {
        let Some((file, size)) = self.open(dir, name)? else {
            return Ok(None);
        };
        if size > MAX_DOCUMENT {
            return Err(self.refused(format!("{name} has {size} bytes")));
        }
        let mut bytes = Vec::new();
        let read = file.take(MAX_DOCUMENT).read_to_end(&mut bytes);
        read.map_err(|source| self.unreadable(source))?;
        Ok(Some(bytes))
    }

    /// A regular file in the layout and its size; `None` where there is none.
    fn open(&self, dir: &OwnedFd, name: &str) -> Result<Option<(File, u64)>, ImportError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let fd = match openat2(dir, name, flags, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV) => {
                return Err(self.refused(format!("{name} is a link")));
            }
            Err(errno) => return Err(self.unreadable(errno.into())),
        };
        let stat = fstat(&fd).map_err(|errno| self.unreadable(errno.into()))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(self.refused(format!("{name} is not a regular file")));
        }
        Ok(Some((
            File::from(fd),
            u64::try_from(stat.st_size).unwrap_or(0),
        )))
    }

    pub(super) fn unreadable(&self, source: std::io::Error) -> ImportError {
        ImportError::Read {
            path: self.path.to_owned(),
            source,
        }
    }
}

/// Where a layout keeps a blob; the digest has been checked to be one.
fn blob_path(blob: &Descriptor) -> String {
    format!("blobs/{}", blob.digest.replacen(':', "/", 1))
}
