//! What package managers keep between the builds of one key: one file, which the image's helpers pack and unpack.

use std::path::Path;

use super::{Inner, artifact, stage};
pub(super) use crate::build::cache::{FILE, FOLDER};
use crate::{
    build::{ArtifactError, MAX_ARCHIVE_BYTES, blocking},
    id::CacheKey,
    storage::objects::ObjectError,
};

/// A cache could not be put into a sandbox, or be taken out of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheError {
    /// The storage failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The build left something else in its place.
    #[error(transparent)]
    File(#[from] ArtifactError),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] std::io::Error),
}

/// Puts the cache of a key into a build's folder. There being none is no failure.
pub(super) async fn restore(
    inner: &Inner,
    key: &CacheKey,
    folder: &Path,
) -> Result<(), CacheError> {
    let staged = tempfile::NamedTempFile::new_in(&inner.staging)?.into_temp_path();
    let path = path(inner, key);
    match inner.caches.fetch(&path, &staged, MAX_ARCHIVE_BYTES).await {
        Err(ObjectError::Missing { .. }) => return Ok(()),
        fetched => drop(fetched?),
    }
    let folder = folder.to_owned();
    blocking(move || {
        let mut content = std::fs::File::open(&staged)?;
        artifact::write(&folder, FILE, &mut content)
    })
    .await?;
    Ok(())
}

/// Keeps what a build left in its folder. It leaving none is no failure.
pub(super) async fn store(inner: &Inner, key: &CacheKey, folder: &Path) -> Result<(), CacheError> {
    let staged = match stage(inner, folder, FILE).await {
        Err(ArtifactError::Missing { .. }) => return Ok(()),
        staged => staged?,
    };
    inner.caches.store(&staged, &path(inner, key)).await?;
    Ok(())
}

fn path(inner: &Inner, key: &CacheKey) -> String {
    let name = format!("{key}/lz4-b1M/{FILE}");
    inner.caches.path(&inner.cache_root, &name)
}
