//! Artifacts on the node's disk, by digest: `<state_dir>/artifacts/<64 hexadecimal digits>.tar.gz`.
//!
//! The name says what a client expects, the content what it is: it may be compressed otherwise or not at all.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::id::Digest;

pub mod objects;

const SUFFIX: &str = ".tar.gz";
const CHUNK: usize = 256 * 1024;

/// The artifacts of one node. Its calls block.
#[derive(Debug, Clone)]
pub struct Storage {
    directory: PathBuf,
}

/// An artifact could not be kept, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Its bytes could not be read.
    #[error("cannot read what is to be stored")]
    Source {
        /// Why.
        source: io::Error,
    },
    /// It has too many bytes.
    #[error("the artifact has more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The host failed: the disk is full, or it broke.
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

impl Storage {
    /// Opens the storage below `state_dir`, and removes what a crash left half written.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(state_dir: &Path) -> Result<Self, StorageError> {
        let directory = state_dir.join("artifacts");
        make_private(&directory).map_err(disk("make", &directory))?;
        for path in list(&directory)? {
            if digest(&path).is_none() {
                fs::remove_file(&path).map_err(disk("remove", &path))?;
            }
        }
        Ok(Self { directory })
    }

    /// Keeps these bytes, `limit` at most. Storing the same ones again changes nothing.
    ///
    /// # Errors
    /// See [`StorageError`]; nothing is left then.
    pub fn put(&self, bytes: impl Read, limit: u64) -> Result<(Digest, u64), StorageError> {
        let failed = |source| StorageError::Disk {
            what: "write an artifact into",
            path: self.directory.clone(),
            source,
        };
        // Mode 0600, and removed where it is not kept.
        let mut file = tempfile::NamedTempFile::new_in(&self.directory).map_err(failed)?;
        let mut bytes = bytes.take(limit.saturating_add(1));
        let (mut sum, mut size, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
        loop {
            let n = match bytes.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(StorageError::Source { source }),
            };
            size += n as u64;
            if size > limit {
                return Err(StorageError::TooLarge { limit });
            }
            sum.update(&chunk[..n]);
            file.write_all(&chunk[..n]).map_err(failed)?;
        }
        let digest = Digest::from_sha256(sum.finalize().into());
        file.as_file().sync_all().map_err(failed)?;
        let path = self.path(&digest);
        file.persist(&path).map_err(|e| failed(e.error))?;
        let directory = File::open(&self.directory).map_err(failed)?;
        directory.sync_all().map_err(failed)?;
        Ok((digest, size))
    }

    /// Where an artifact is, if it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{}{SUFFIX}", digest.hex()))
    }

    /// Removes an artifact. Succeeds where it is not there.
    ///
    /// # Errors
    /// The disk refused.
    pub fn remove(&self, digest: &Digest) -> Result<(), StorageError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(disk("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// The artifacts that there are.
    ///
    /// # Errors
    /// The disk refused.
    pub fn digests(&self) -> Result<BTreeSet<Digest>, StorageError> {
        Ok(list(&self.directory)?
            .iter()
            .filter_map(|p| digest(p))
            .collect())
    }

    /// Removes all artifacts but these; goes on past a failure. Answers how many.
    ///
    /// # Errors
    /// The first failure.
    pub fn remove_unused(&self, used: &BTreeSet<Digest>) -> Result<usize, StorageError> {
        let mut outcome = Ok(0);
        for digest in self.digests()? {
            if used.contains(&digest) {
                continue;
            }
            match (self.remove(&digest), &mut outcome) {
                (Ok(()), Ok(n)) => *n += 1,
                (Err(error), Ok(_)) => outcome = Err(error),
                (_, Err(_)) => {}
            }
        }
        outcome
    }
}

/// Makes a folder for the owner only, in one that others may enter.
fn make_private(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory.parent().unwrap_or(Path::new("/")))?;
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The digest that a file's name says.
fn digest(path: &Path) -> Option<Digest> {
    let hex = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    format!("sha256:{hex}").parse().ok()
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let entries = fs::read_dir(directory).map_err(disk("list", directory))?;
    entries
        .map(|entry| Ok(entry.map_err(disk("list", directory))?.path()))
        .collect()
}

fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Disk { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const LIMIT: u64 = 1000;

    fn storage() -> (tempfile::TempDir, Storage) {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path()).unwrap();
        (dir, storage)
    }

    fn n_files(storage: &Storage) -> usize {
        fs::read_dir(&storage.directory).unwrap().count()
    }

    #[test]
    fn keeps_bytes_under_their_digest_for_the_owner_only() {
        let (_dir, storage) = storage();
        let (digest, size) = storage.put(b"abc".as_slice(), LIMIT).unwrap();
        assert_eq!(size, 3);
        assert_eq!(
            digest.to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let path = storage.path(&digest);
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        storage.put(b"abc".as_slice(), LIMIT).unwrap();
        assert_eq!(n_files(&storage), 1);
        storage.remove(&digest).unwrap();
        storage.remove(&digest).unwrap();
        assert_eq!(n_files(&storage), 0);
    }

    #[test]
    fn what_is_too_large_or_breaks_off_leaves_nothing() {
        struct Breaks;
        impl Read for Breaks {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        let (_dir, storage) = storage();
        let endless = storage.put(io::repeat(7), LIMIT);
        assert!(matches!(endless, Err(StorageError::TooLarge { .. })));
        let broken = storage.put(b"abc".chain(Breaks), LIMIT);
        assert!(matches!(broken, Err(StorageError::Source { .. })));
        assert_eq!(n_files(&storage), 0);
        assert!(storage.put(io::repeat(7).take(LIMIT), LIMIT).is_ok());
    }

    #[test]
    fn what_a_crash_left_is_removed_at_the_start() {
        let (dir, storage) = storage();
        let (kept, _) = storage.put(b"abc".as_slice(), LIMIT).unwrap();
        fs::write(storage.directory.join(".tmpAbC123"), "half").unwrap();
        let storage = Storage::open(dir.path()).unwrap();
        assert_eq!(n_files(&storage), 1);
        assert!(storage.path(&kept).exists());
    }

    #[test]
    fn removes_what_nobody_uses() {
        let (_dir, storage) = storage();
        let (kept, _) = storage.put(b"abc".as_slice(), LIMIT).unwrap();
        let (gone, _) = storage.put(b"def".as_slice(), LIMIT).unwrap();
        let used = BTreeSet::from([kept.clone()]);
        assert_eq!(storage.remove_unused(&used).unwrap(), 1);
        assert!(storage.path(&kept).exists() && !storage.path(&gone).exists());
    }
}
