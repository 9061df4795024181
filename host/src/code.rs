//! Functions' code, unpacked once for each artifact: `<state_dir>/code/<64 hexadecimal digits>/`.
//!
//! Directories are 0755 and files 0644 or 0755, and all of it is the host's own: sandboxes, whose ids are
//! others, read it through a read-only mount.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::{id::Digest, turns::Turns};

pub mod unpack;

use unpack::confined::{ConfinedError, Unpacker};
pub use unpack::confined::{SUBCOMMAND, confined_main};

/// The unpacked code of one node.
#[derive(Debug)]
pub struct CodeCache {
    directory: PathBuf,
    unpacker: Unpacker,
    turns: Turns<Digest>,
}

/// Code could not be made available.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// The folder or the artifact cannot be used.
    #[error("cannot {what} {path}")]
    Disk {
        /// What.
        what: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The artifact is another than its name says: the disk is damaged.
    #[error("artifact {path} is damaged: its digest is {found}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: Digest,
    },
    /// The artifact was not unpacked.
    #[error("cannot unpack artifact {digest}")]
    Unpack {
        /// Which one.
        digest: Digest,
        /// Why.
        source: ConfinedError,
    },
}

impl CodeCache {
    /// Opens the cache below `state_dir`, and removes what a crash left half done. Blocks: called once, at start.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn new(state_dir: &Path) -> Result<Self, CodeError> {
        let directory = state_dir.join("code");
        fs::create_dir_all(&directory).map_err(disk("make", &directory))?;
        for path in list(&directory)? {
            if digest(&path).is_none() {
                remove(&path)?;
            }
        }
        Ok(Self {
            directory,
            unpacker: Unpacker::default(),
            turns: Turns::default(),
        })
    }

    /// Where the code of an artifact is, unpacked from the file `artifact` where it is not yet.
    /// Callers who ask at once wait for one of them.
    ///
    /// # Errors
    /// See [`CodeError`]; nothing is left then.
    pub async fn ensure(&self, digest: &Digest, artifact: &Path) -> Result<PathBuf, CodeError> {
        let target = self.directory.join(digest.hex());
        if exists(&target).await {
            return Ok(target);
        }
        let _turn = self.turns.take(digest).await;
        self.make(digest, artifact, &target).await?;
        Ok(target)
    }

    async fn make(&self, digest: &Digest, artifact: &Path, target: &Path) -> Result<(), CodeError> {
        if exists(target).await {
            return Ok(());
        }
        let path = artifact.to_owned();
        let found = blocking(move || sum(&path)).await?;
        if found != *digest {
            return Err(CodeError::Damaged {
                path: artifact.to_owned(),
                found,
            });
        }
        let unpacked = self.unpacker.unpack(artifact, target).await;
        unpacked.map_err(|source| CodeError::Unpack {
            digest: digest.clone(),
            source,
        })
    }

    /// The artifacts whose code is here. Blocks.
    ///
    /// # Errors
    /// The disk refused.
    pub fn digests(&self) -> Result<BTreeSet<Digest>, CodeError> {
        Ok(list(&self.directory)?
            .iter()
            .filter_map(|p| digest(p))
            .collect())
    }

    /// Takes the names away of all code but that of these artifacts, so that nobody finds a half-removed directory.
    /// Blocks for a moment.
    ///
    /// # Errors
    /// The disk refused to list; single failures are told by [`Nameless::remove`].
    pub fn unname_unused(&self, used: &BTreeSet<Digest>) -> Result<Nameless, CodeError> {
        let is_unused = |path: &PathBuf| digest(path).is_some_and(|digest| !used.contains(&digest));
        let unused = list(&self.directory)?.into_iter().filter(is_unused);
        Ok(Nameless(unused.map(|path| unname(&path)).collect()))
    }
}

/// Code that nobody finds any more.
#[derive(Debug)]
#[must_use = "it is on the disk until the next start"]
pub struct Nameless(Vec<Result<PathBuf, CodeError>>);

impl Nameless {
    /// Removes it. Blocks. Answers how much there was.
    ///
    /// # Errors
    /// The first failure; what could be removed is gone.
    pub fn remove(self) -> Result<usize, CodeError> {
        let removed: Vec<_> = self.0.into_iter().map(|path| remove(&path?)).collect();
        let n = removed.len();
        removed.into_iter().collect::<Result<(), _>>()?;
        Ok(n)
    }
}

fn unname(path: &Path) -> Result<PathBuf, CodeError> {
    let gone = path.with_extension(format!("tmp-{:016x}", rand::random::<u64>()));
    fs::rename(path, &gone).map_err(disk("remove", path))?;
    Ok(gone)
}

fn remove(path: &Path) -> Result<(), CodeError> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_dir {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.map_err(disk("remove", path))
}

async fn exists(path: &Path) -> bool {
    tokio::fs::try_exists(path).await.unwrap_or(false)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("file operations do not panic")
}

fn sum(path: &Path) -> Result<Digest, CodeError> {
    let mut sum = Sha256::new();
    let mut file = File::open(path).map_err(disk("read", path))?;
    io::copy(&mut file, &mut sum).map_err(disk("read", path))?;
    Ok(Digest::from_sha256(sum.finalize().into()))
}

fn digest(path: &Path) -> Option<Digest> {
    let hex = path.file_name()?.to_str()?;
    format!("sha256:{hex}").parse().ok()
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, CodeError> {
    let entries = fs::read_dir(directory).map_err(disk("list", directory))?;
    entries
        .map(|entry| Ok(entry.map_err(disk("list", directory))?.path()))
        .collect()
}

fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CodeError {
    let path = path.to_owned();
    move |source| CodeError::Disk { what, path, source }
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::{
        unpack::tests::{gzip, tar},
        *,
    };
    use crate::storage::Storage;

    struct Node {
        dir: tempfile::TempDir,
        storage: Storage,
        cache: CodeCache,
    }

    fn node() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path()).unwrap();
        let cache = CodeCache::new(dir.path()).unwrap();
        Node {
            dir,
            storage,
            cache,
        }
    }

    impl Node {
        fn put(&self, content: &[u8]) -> (Digest, PathBuf) {
            let archive = gzip(&tar(&[(EntryType::Regular, "index.js", "", content)]));
            let (digest, _) = self.storage.put(archive.as_slice(), 1 << 20).unwrap();
            let path = self.storage.path(&digest);
            (digest, path)
        }

        fn listing(&self) -> Vec<PathBuf> {
            list(&self.cache.directory).unwrap()
        }
    }

    #[tokio::test]
    async fn many_who_ask_at_once_get_one_directory() {
        let node = node();
        let (digest, artifact) = node.put(b"1");
        let asking = (0..8).map(|_| node.cache.ensure(&digest, &artifact));
        let found = futures_util::future::try_join_all(asking).await.unwrap();
        assert!(found.iter().all(|path| *path == found[0]));
        assert_eq!(fs::read(found[0].join("index.js")).unwrap(), b"1");
        assert_eq!(node.listing().len(), 1);
    }

    #[tokio::test]
    async fn a_damaged_artifact_is_an_error_and_leaves_nothing() {
        let node = node();
        let (digest, artifact) = node.put(b"1");
        fs::write(&artifact, "damaged").unwrap();
        let error = node.cache.ensure(&digest, &artifact).await.unwrap_err();
        assert!(matches!(error, CodeError::Damaged { .. }), "{error}");
        fs::remove_file(&artifact).unwrap();
        let error = node.cache.ensure(&digest, &artifact).await.unwrap_err();
        assert!(matches!(error, CodeError::Disk { .. }), "{error}");
        assert!(node.listing().is_empty());
    }

    #[tokio::test]
    async fn removes_what_nobody_uses() {
        let node = node();
        let ((kept, one), (gone, two)) = (node.put(b"1"), node.put(b"2"));
        let kept_path = node.cache.ensure(&kept, &one).await.unwrap();
        node.cache.ensure(&gone, &two).await.unwrap();
        let used = BTreeSet::from([kept]);
        assert_eq!(
            node.cache.unname_unused(&used).unwrap().remove().unwrap(),
            1
        );
        assert_eq!(node.listing(), [kept_path]);
    }

    #[tokio::test]
    async fn what_a_crash_left_is_removed_at_the_start() {
        let node = node();
        let (digest, artifact) = node.put(b"1");
        let path = node.cache.ensure(&digest, &artifact).await.unwrap();
        let half = path.with_extension("tmp-0123456789abcdef");
        fs::create_dir_all(half.join("a/b")).unwrap();
        let again = CodeCache::new(node.dir.path()).unwrap();
        assert_eq!(list(&again.directory).unwrap(), [path]);
    }
}
