//! Archives that clients of the executor API bring as an instance's code: fetched and unpacked once for each content.
//! Instances see the archive read-only, and what is in it as their own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OnceCell, RwLock};

use crate::{
    code::{CodeCache, CodeError},
    id::Digest,
    storage::objects::{ObjectError, Objects},
    telemetry::chain,
    turns::Turns,
};

/// Bytes of one archive, at most.
const MAX_SOURCE: u64 = 4 << 30;
/// How long an archive that no instance uses is kept.
const KEPT: Duration = Duration::from_secs(600);

/// The label of a container's archive.
const LABEL: &str = "opr/source";

/// The archives: `<state_dir>/sources/<64 hexadecimal digits>`, and below `code` what is in them.
#[derive(Debug)]
pub(super) struct Sources {
    dir: PathBuf,
    objects: Objects,
    code: Arc<CodeCache>,
    /// Whoever removes unpacked code has it alone.
    removal: Arc<RwLock<()>>,
    known: Mutex<Known>,
    turns: Turns<String>,
}

#[derive(Debug, Default)]
struct Known {
    /// Of each path the version that was fetched last, and its content.
    versions: HashMap<String, (String, Digest)>,
    files: HashMap<Digest, (Arc<Source>, Instant)>,
}

/// An archive on this machine. It stays as long as somebody holds this.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    digest: Digest,
    unpacked: OnceCell<Option<PathBuf>>,
}

impl Source {
    /// What a later process finds it by: kept with the container.
    pub(super) fn label(&self) -> (String, String) {
        (LABEL.to_owned(), self.digest.to_string())
    }
}

impl Sources {
    /// Opens the folder below `state_dir`, and removes what a crash left half fetched.
    pub(super) fn new(state_dir: &Path, objects: Objects) -> io::Result<Self> {
        let dir = state_dir.join("sources");
        DirBuilder::new().recursive(true).mode(0o711).create(&dir)?;
        let code = CodeCache::new(&dir).map_err(io::Error::other)?;
        let mut known = Known::default();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match format!("sha256:{name}").parse() {
                Ok(digest) => known.keep(digest, path),
                Err(_) if path.is_file() => fs::remove_file(&path)?,
                Err(_) => {}
            }
        }
        Ok(Self {
            dir,
            objects,
            code: Arc::new(code),
            removal: Arc::default(),
            known: Mutex::new(known),
            turns: Turns::default(),
        })
    }

    /// An archive of the storage. Callers who ask at once for the same wait for one of them.
    pub(super) async fn get(&self, path: &str) -> Result<Arc<Source>, ObjectError> {
        let _turn = self.turns.take(&path.to_owned()).await;
        let found = self.lock().find(path);
        let version = found.as_ref().map(|(version, _)| version.as_str());
        let target = self.dir.join(format!("new-{:016x}", rand::random::<u64>()));
        let objects = &self.objects;
        let fetched = objects
            .fetch_newer(path, &target, MAX_SOURCE, version)
            .await?;
        let Some(fetched) = fetched else {
            return Ok(found.expect("only its version can be the same").1);
        };
        let place = self.dir.join(fetched.digest.hex());
        // Every sandbox's ids may read it.
        fs::set_permissions(&target, Permissions::from_mode(0o444))
            .and_then(|()| fs::rename(&target, &place))
            .map_err(|source| ObjectError::Disk {
                what: "keep",
                path: place.clone(),
                source,
            })?;
        let mut known = self.lock();
        known.keep(fetched.digest.clone(), place);
        let found = (fetched.version, fetched.digest);
        known.versions.insert(path.to_owned(), found);
        let found = known.find(path);
        Ok(found.expect("it was kept a moment ago").1)
    }

    /// The directory of what is in an archive; none where it is left to the image to unpack it: it is no tar file, or
    /// there are things in it that this node makes for nobody.
    pub(super) async fn unpacked<'a>(&self, source: &'a Source) -> Option<&'a Path> {
        let unpack = || async {
            let _shared = self.removal.read().await;
            match self.code.ensure(&source.digest, &source.path).await {
                Ok(directory) => Ok(Some(directory)),
                Err(error @ CodeError::Unpack { .. }) => {
                    tracing::info!(error = %chain(&error), "a source is left to its image");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        };
        match source.unpacked.get_or_try_init(unpack).await {
            Ok(directory) => directory.as_deref(),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a source was not unpacked");
                None
            }
        }
    }

    /// The archive that an earlier process gave to a container with these labels.
    pub(super) fn of_labels(&self, labels: &BTreeMap<String, String>) -> Option<Arc<Source>> {
        let digest = labels.get(LABEL)?.parse().ok()?;
        let known = self.lock();
        known.files.get(&digest).map(|(source, _)| source.clone())
    }

    /// Removes what nobody holds or has asked for lately. Nothing while one is being unpacked: who waited for that would
    /// hold up all that come after.
    pub(super) async fn sweep(&self, now: Instant) {
        let Ok(alone) = self.removal.clone().try_write_owned() else {
            return;
        };
        let kept = self.forget_unused(now);
        let code = self.code.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let unnamed = code.unname_unused(&kept);
            // Whoever unpacks the same anew need not wait for the rest.
            drop(alone);
            unnamed?.remove()
        });
        if let Err(error) = removed.await.expect("file operations do not panic") {
            tracing::warn!(error = %chain(&error), "unpacked sources were not removed");
        }
    }

    /// Removes unused archives; answers which are left.
    fn forget_unused(&self, now: Instant) -> BTreeSet<Digest> {
        let mut known = self.lock();
        known.files.retain(|_, (source, used)| {
            let is_used = Arc::strong_count(source) > 1;
            let is_kept = is_used || now.saturating_duration_since(*used) < KEPT;
            if !is_kept && let Err(error) = fs::remove_file(&source.path) {
                tracing::warn!(%error, path = %source.path.display(), "unused source was not removed");
            }
            is_kept
        });
        let Known { versions, files } = &mut *known;
        versions.retain(|_, (_, digest)| files.contains_key(digest));
        files.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn keep(&mut self, digest: Digest, path: PathBuf) {
        let source = Source {
            path,
            digest: digest.clone(),
            unpacked: OnceCell::new(),
        };
        let new = || (Arc::new(source), Instant::now());
        self.files.entry(digest).or_insert_with(new).1 = Instant::now();
    }

    /// The version of a path's archive, and the archive.
    fn find(&mut self, path: &str) -> Option<(String, Arc<Source>)> {
        let (version, digest) = self.versions.get(path)?;
        let (source, used) = self.files.get_mut(digest)?;
        *used = Instant::now();
        Some((version.clone(), source.clone()))
    }
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::*;
    use crate::{
        code::unpack::tests::{gzip, tar},
        config::Device,
    };

    struct Node {
        dir: tempfile::TempDir,
        sources: Sources,
    }

    fn node() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::new(&Device::Local).unwrap();
        let sources = Sources::new(dir.path(), objects).unwrap();
        Node { dir, sources }
    }

    impl Node {
        fn write(&self, name: &str, text: &str) -> String {
            let path = self.dir.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        }

        fn n_files(&self) -> usize {
            let entries = fs::read_dir(&self.sources.dir).unwrap();
            entries
                .filter(|entry| entry.as_ref().unwrap().path().is_file())
                .count()
        }
    }

    #[tokio::test]
    async fn one_content_is_one_file_for_all() {
        let node = node();
        let (one, two) = (node.write("a", "code"), node.write("b", "code"));
        let asked = [&one, &two, &one].map(|path| node.sources.get(path));
        let found = futures_util::future::try_join_all(asked).await.unwrap();
        assert!(found.iter().all(|source| source.path == found[0].path));
        assert_eq!(fs::read(&found[0].path).unwrap(), b"code");
        let mode = found[0].path.metadata().unwrap().permissions().mode();
        assert_eq!((mode & 0o777, node.n_files()), (0o444, 1));
    }

    #[tokio::test]
    async fn what_has_changed_is_fetched_again() {
        let node = node();
        let path = node.write("a", "old");
        let old = node.sources.get(&path).await.unwrap();
        node.write("a", "newer");
        let new = node.sources.get(&path).await.unwrap();
        assert_eq!(fs::read(&new.path).unwrap(), b"newer");
        assert_eq!(fs::read(&old.path).unwrap(), b"old");
        fs::remove_file(&path).unwrap();
        let gone = node.sources.get(&path).await.unwrap_err();
        assert!(matches!(gone, ObjectError::Missing { .. }), "{gone}");
    }

    #[tokio::test]
    async fn what_nobody_uses_goes_after_a_while() {
        let node = node();
        let held = node.sources.get(&node.write("a", "one")).await.unwrap();
        node.sources.get(&node.write("b", "two")).await.unwrap();
        node.sources.sweep(Instant::now()).await;
        assert_eq!(node.n_files(), 2);
        node.sources.sweep(Instant::now() + KEPT).await;
        assert_eq!(node.n_files(), 1);
        assert!(held.path.exists());
    }

    #[tokio::test]
    async fn an_archive_is_unpacked_once_and_goes_with_its_file() {
        let node = node();
        let archive = gzip(&tar(&[(EntryType::Regular, "index.js", "", b"code")]));
        let path = node.dir.path().join("a");
        fs::write(&path, archive).unwrap();
        let source = node.sources.get(path.to_str().unwrap()).await.unwrap();
        let asked = (0..4).map(|_| node.sources.unpacked(&source));
        let found = futures_util::future::join_all(asked).await;
        let directory = found[0].unwrap().to_owned();
        assert!(found.iter().all(|path| *path == Some(&directory)));
        assert_eq!(fs::read(directory.join("index.js")).unwrap(), b"code");
        node.sources.sweep(Instant::now() + KEPT).await;
        assert!(directory.exists());
        drop(source);
        node.sources.sweep(Instant::now() + KEPT).await;
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn nothing_is_removed_or_held_up_while_a_source_is_unpacked() {
        let node = node();
        node.sources.get(&node.write("a", "one")).await.unwrap();
        let unpacking = node.sources.removal.read().await;
        node.sources.sweep(Instant::now() + KEPT).await;
        assert_eq!(node.n_files(), 1);
        drop(unpacking);
        node.sources.sweep(Instant::now() + KEPT).await;
        assert_eq!(node.n_files(), 0);
    }

    #[tokio::test]
    async fn what_is_no_tar_file_is_left_to_the_image() {
        let node = node();
        let source = node.sources.get(&node.write("a", "hsqs")).await.unwrap();
        assert_eq!(node.sources.unpacked(&source).await, None);
    }

    #[tokio::test]
    async fn a_later_process_knows_what_is_there() {
        let node = node();
        let source = node.sources.get(&node.write("a", "one")).await;
        let label = source.unwrap().label();
        fs::write(node.sources.dir.join("new-half"), "o").unwrap();
        let objects = Objects::new(&Device::Local).unwrap();
        let later = Sources::new(node.dir.path(), objects).unwrap();
        assert_eq!(node.n_files(), 1);
        let held = later.of_labels(&BTreeMap::from([label]));
        later.sweep(Instant::now() + KEPT).await;
        assert_eq!((held.is_some(), node.n_files()), (true, 1));
        drop(held);
        later.sweep(Instant::now() + KEPT).await;
        assert_eq!(node.n_files(), 0);
    }
}
