//! An OCI layout, or what `docker save` writes, in a tar archive, read once from front to back.
//!
//! A thread reads the archive and hands pieces over a short queue; this side writes them into the
//! content store. Names are keys of a map and never paths on a disk.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek as _},
    path::{Component, Path, PathBuf},
};

use tokio::sync::mpsc;

use super::{Found, Import, ImportError, SAVED_CONFIG, SAVED_LAYER, Saved, saved_blob};
use crate::{
    content::{MAX_DOCUMENT, WriteError, Writer},
    document::{Descriptor, DocumentError, is_digest},
    lease::{Lease, unique},
    progress::LayerState,
};

/// Entries in one archive; an image of 500 layers has a few thousand in the oldest form.
const MAX_ENTRIES: usize = 20_000;
/// Bytes of all entries together, 64 GiB: what a small file may blow up to on the node's disk.
const MAX_BYTES: u64 = 64 << 30;
/// How much of a blob is sent to containerd at once.
const PIECE: usize = 256 << 10;

/// What the reading thread comes across.
enum Event {
    /// A file begins whose bytes follow in `Data`.
    File { name: String, size: u64 },
    /// Bytes of the file.
    Data(Vec<u8>),
    /// The file is complete.
    End,
    /// One of the documents by which an archive says what it is.
    Document { name: String, bytes: Vec<u8> },
    /// A name for another entry, both as plain paths from the root.
    Link { name: String, target: String },
}

/// What the archive held.
#[derive(Default)]
struct Contents {
    documents: HashMap<String, Vec<u8>>,
    /// Digest and size by name.
    files: HashMap<String, (String, u64)>,
    links: HashMap<String, String>,
}

impl Import<'_> {
    /// Reads the archive and puts its blobs into the content store.
    pub(super) async fn archive(&self, lease: &Lease) -> Result<Vec<Found>, ImportError> {
        let (events, mut receiver) = mpsc::channel(4);
        let path = self.path.to_owned();
        let reader = tokio::task::spawn_blocking(move || Reader { path, events }.read());
        let contents = self.store(lease, &mut receiver).await;
        // A reader that still has something to say finds nobody listening, and ends.
        drop(receiver);
        let read = reader.await.expect("the reader does not panic");
        let contents = match (read, contents) {
            (Err(error), _) | (Ok(()), Err(error)) => return Err(error),
            (Ok(()), Ok(contents)) => contents,
        };
        match (
            contents.documents.get("oci-layout"),
            contents.documents.get("index.json"),
        ) {
            (Some(_), Some(index)) => self.listed(index),
            _ => self.saved(lease, &contents).await,
        }
    }

    async fn store(
        &self,
        lease: &Lease,
        events: &mut mpsc::Receiver<Event>,
    ) -> Result<Contents, ImportError> {
        let mut contents = Contents::default();
        while let Some(event) = events.recv().await {
            match event {
                Event::Document { name, bytes } => {
                    contents.documents.insert(name, bytes);
                }
                Event::Link { name, target } => {
                    contents.links.insert(name, target);
                }
                Event::File { name, size } => {
                    // An archive that ends early is the reader's to tell.
                    let Some(digest) = self.blob(lease, events, &name, size).await? else {
                        break;
                    };
                    contents.files.insert(name, (digest, size));
                }
                Event::Data(_) | Event::End => unreachable!("taken by the file before"),
            }
        }
        Ok(contents)
    }

    /// Writes one file into the content store; answers its digest, or `None` when it is cut off.
    async fn blob(
        &self,
        lease: &Lease,
        events: &mut mpsc::Receiver<Event>,
        name: &str,
        size: u64,
    ) -> Result<Option<String>, ImportError> {
        let client = &self.images.client;
        let expected = digest_in_path(name);
        let ingest = format!("opr-import-{}", unique());
        let wanted = expected.as_deref().map(|digest| (digest, size));
        let mut writer = Writer::open(client, lease, &ingest, wanted).await?;
        let mut done = 0;
        while let Some(event) = events.recv().await {
            match (event, writer.as_mut()) {
                (Event::Data(bytes), writer) => {
                    let begin = done;
                    done += bytes.len() as u64;
                    if let Some(digest) = &expected {
                        let state = LayerState::Downloading { done, total: size };
                        self.progress.layer(digest, state);
                    }
                    if let Some(writer) = writer {
                        writer.write_from(begin, bytes).await?;
                    }
                }
                (_, None) => return Ok(expected),
                (_, Some(_)) => {
                    let writer = writer.take().expect("matched as present");
                    return match writer.commit(expected.as_deref(), HashMap::new()).await {
                        Ok(digest) => Ok(Some(digest)),
                        Err(WriteError::Call(call)) => Err(call.into()),
                        Err(WriteError::Mismatch { expected }) => Err(self.mismatch(&expected)),
                    };
                }
            }
        }
        if let Some(writer) = writer {
            writer.abort().await;
        }
        Ok(None)
    }

    /// The images that `manifest.json` of `docker save` lists.
    async fn saved(&self, lease: &Lease, contents: &Contents) -> Result<Vec<Found>, ImportError> {
        let json = contents.documents.get("manifest.json").ok_or_else(|| {
            self.no_images("it has neither oci-layout and index.json nor manifest.json")
        })?;
        let list: Vec<Saved> = serde_json::from_slice(json).map_err(|source| {
            let what = format!("manifest.json in {}", self.path.display());
            DocumentError::Json { what, source }
        })?;
        let mut found = Vec::new();
        for saved in list {
            let config = self.saved_blob(contents, SAVED_CONFIG, &saved.config)?;
            let layers = saved.layers.iter();
            let layers = layers.map(|layer| self.saved_blob(contents, SAVED_LAYER, layer));
            let layers = layers.collect::<Result<Vec<_>, _>>()?;
            let target = self.write_manifest(lease, config, layers).await?;
            let tags = saved.repo_tags.unwrap_or_default();
            let names = tags
                .iter()
                .map(|tag| tag.parse())
                .collect::<Result<Vec<_>, _>>();
            let names =
                names.map_err(|error: crate::ReferenceError| self.refused(error.to_string()))?;
            found.push(Found { names, target });
        }
        Ok(found)
    }

    fn saved_blob(
        &self,
        contents: &Contents,
        media_type: &str,
        name: &str,
    ) -> Result<Descriptor, ImportError> {
        let mut name = name;
        // `docker save` of old links a layer that two images share; a link to a link has no use.
        if let Some(target) = contents.links.get(name) {
            name = target;
        }
        let (digest, size) = contents.files.get(name).ok_or_else(|| self.missing(name))?;
        Ok(saved_blob(media_type, digest, *size))
    }
}

/// The thread that reads the archive.
struct Reader {
    path: PathBuf,
    events: mpsc::Sender<Event>,
}

/// The other side has gone, so reading on is of no use; it tells why itself.
struct Gone;

enum Stop {
    Gone,
    Failed(ImportError),
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl Reader {
    fn read(self) -> Result<(), ImportError> {
        match self.entries() {
            Ok(()) | Err(Stop::Gone) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn entries(&self) -> Result<(), Stop> {
        let stream = decompress(&self.path).map_err(|source| self.unreadable(source))?;
        let mut archive = tar::Archive::new(stream);
        // Raw: extension headers are entries here, so none is read into memory unbounded.
        let entries = archive
            .entries()
            .map_err(|source| self.unreadable(source))?
            .raw(true);
        let (mut count, mut total) = (0_usize, 0_u64);
        for entry in entries {
            let mut entry = entry.map_err(|source| self.unreadable(source))?;
            count += 1;
            total = total.saturating_add(entry.size());
            if count > MAX_ENTRIES {
                return Err(self.refused(format!("more than {MAX_ENTRIES} entries")));
            }
            if total > MAX_BYTES {
                return Err(self.refused(format!("more than {} GiB", MAX_BYTES >> 30)));
            }
            self.entry(&mut entry)?;
        }
        match count {
            0 => Err(self.refused("an empty archive".to_owned())),
            _ => Ok(()),
        }
    }

    fn entry<R: Read>(&self, entry: &mut tar::Entry<'_, R>) -> Result<(), Stop> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() || kind.is_pax_local_extensions() {
            return self.extension(entry);
        }
        let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = self.inside("", &raw, &raw)?;
        if kind.is_dir() {
            return Ok(());
        }
        if kind.is_symlink() || kind.is_hard_link() {
            let link = entry.link_name_bytes().unwrap_or_default();
            let link = String::from_utf8_lossy(&link).into_owned();
            let parent = Path::new(&name)
                .parent()
                .and_then(Path::to_str)
                .unwrap_or_default();
            let from = if kind.is_symlink() { parent } else { "" };
            let target = self.inside(from, &link, &raw)?;
            return Ok(self.send(Event::Link { name, target })?);
        }
        if !(kind.is_file() || kind.is_contiguous()) {
            return Err(self.refused(format!("entry {raw:?} is no file, link or directory")));
        }
        let size = entry.size();
        if matches!(name.as_str(), "oci-layout" | "index.json" | "manifest.json") {
            let bytes = self.small(entry, &name, MAX_DOCUMENT)?;
            return Ok(self.send(Event::Document { name, bytes })?);
        }
        let is_blob = digest_in_path(&name).is_some();
        if !(is_blob || name.ends_with(".tar") || name.ends_with(".json")) {
            return Ok(());
        }
        self.send(Event::File { name, size })?;
        let mut left = size;
        while left > 0 {
            let mut bytes = Vec::with_capacity(PIECE.min(usize::try_from(left).unwrap_or(PIECE)));
            let read = entry.by_ref().take(PIECE as u64).read_to_end(&mut bytes);
            read.map_err(|source| self.unreadable(source))?;
            if bytes.is_empty() {
                return Err(self.unreadable(io::ErrorKind::UnexpectedEof.into()));
            }
            left -= bytes.len() as u64;
            self.send(Event::Data(bytes))?;
        }
        Ok(self.send(Event::End)?)
    }

    /// An extension may not change what the next header says of name and size: the names and sizes
    /// that images have need none.
    fn extension<R: Read>(&self, entry: &mut tar::Entry<'_, R>) -> Result<(), Stop> {
        let bytes = self.small(entry, "an extension header", 1 << 20)?;
        for record in tar::PaxExtensions::new(&bytes) {
            let record = record.map_err(|source| self.unreadable(source))?;
            if matches!(record.key_bytes(), b"path" | b"linkpath" | b"size") {
                let key = String::from_utf8_lossy(record.key_bytes()).into_owned();
                return Err(self.refused(format!("an entry has its {key} in an extension header")));
            }
        }
        Ok(())
    }

    fn small<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        name: &str,
        limit: u64,
    ) -> Result<Vec<u8>, Stop> {
        if entry.size() > limit {
            return Err(self.refused(format!("{name} has {} bytes", entry.size())));
        }
        let mut bytes = Vec::new();
        entry
            .read_to_end(&mut bytes)
            .map_err(|source| self.unreadable(source))?;
        Ok(bytes)
    }

    /// `path` seen from the folder `from`, as a plain path from the root.
    fn inside(&self, from: &str, path: &str, entry: &str) -> Result<String, Stop> {
        plain(from, path).ok_or_else(|| {
            let (path, entry) = (self.path.clone(), entry.to_owned());
            Stop::Failed(ImportError::Escapes { path, entry })
        })
    }

    fn send(&self, event: Event) -> Result<(), Gone> {
        self.events.blocking_send(event).map_err(|_| Gone)
    }

    fn unreadable(&self, source: io::Error) -> Stop {
        Stop::Failed(ImportError::Read {
            path: self.path.clone(),
            source,
        })
    }

    fn refused(&self, problem: impl Into<String>) -> Stop {
        let (path, problem) = (self.path.clone(), problem.into());
        Stop::Failed(ImportError::Refused { path, problem })
    }
}

/// The archive's bytes, whichever way it is compressed.
fn decompress(path: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    let file = BufReader::with_capacity(PIECE, file);
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    })
}

/// `path` seen from `from`, without `.` and `..`; `None` when it leaves the root.
fn plain(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// The digest in a layout's name of a blob, `blobs/sha256/…`.
fn digest_in_path(name: &str) -> Option<String> {
    let digest = name.strip_prefix("blobs/")?.replacen('/', ":", 1);
    is_digest(&digest).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(from: &str, path: &str, expected: Option<&str>) {
        assert_eq!(plain(from, path).as_deref(), expected, "{path} from {from}");
    }

    #[test]
    fn paths_stay_inside() {
        check("", "./index.json", Some("index.json"));
        check("a", "../b/layer.tar", Some("b/layer.tar"));
        check("", "../b", None);
        check("a", "../../b", None);
        check("", "/etc/passwd", None);
        check("", "a/../../b", None);
    }

    #[test]
    fn only_a_digest_names_a_blob() {
        let hex = "a".repeat(64);
        let digest = Some(format!("sha256:{hex}"));
        assert_eq!(digest_in_path(&format!("blobs/sha256/{hex}")), digest);
        assert_eq!(digest_in_path("blobs/sha256/../../x"), None);
        assert_eq!(digest_in_path(&format!("x/blobs/sha256/{hex}")), None);
    }
}
