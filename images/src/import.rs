//! Images from files: an OCI layout in a directory, one in an archive, or what `docker save` writes.
//!
//! Files come from strangers. Nothing of an archive is ever written under a name it chose: its blobs
//! go straight into the content store, which checks their digests, and its documents into memory,
//! bounded. In a directory everything is opened beneath it, without following a link.

mod archive;
mod layout;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    Image, Images, Reference,
    client::CallError,
    content::{self, WriteError},
    document::{
        DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, Document, DocumentError, Index,
        Manifest, digest_of,
    },
    lease::Lease,
    progress::{LayerState, Progress},
    store::{StoreError, documents},
    unpack::{UnpackError, Unpacker},
};

/// A file could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is neither an OCI layout, nor an OCI archive, nor what `docker save` writes.
    #[error("{path} holds no images: {problem}")]
    NoImages {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        problem: String,
    },
    /// A name in it leads outside.
    #[error("entry {entry:?} in {path} points outside its root")]
    Escapes {
        /// The file.
        path: PathBuf,
        /// The entry's name.
        entry: String,
    },
    /// It has something no image file has, or more than any has.
    #[error("{path} is refused: {problem}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it has.
        problem: String,
    },
    /// A blob is not what its digest says.
    #[error("a blob in {path} does not match its digest {digest}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The digest.
        digest: String,
    },
    /// A blob is named and not there.
    #[error("{path} lacks {digest}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The digest or file name.
        digest: String,
    },
    /// It does not say what the image is called, or says it for several.
    #[error("{path} holds {count} images without a name; give a name for one")]
    Name {
        /// The file.
        path: PathBuf,
        /// How many images are in it.
        count: usize,
    },
    /// A document in it cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Its layers cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// What was written cannot be read back.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// containerd refused a step.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// An image in the file: how it is called there, and what it is.
struct Found {
    names: Vec<Reference>,
    target: Descriptor,
}

/// `manifest.json` of `docker save`.
///
/// ```json
/// [{"Config": "5f3….json", "RepoTags": ["node:20"], "Layers": ["a1b…/layer.tar"]}]
/// ```
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Images {
    /// Imports the images in `path`: an OCI layout (a directory), an OCI archive, or an archive of
    /// `docker save`; an archive may be compressed by gzip or zstd.
    ///
    /// `name` names the image when the file holds one; without it the file's own names are taken.
    ///
    /// # Errors
    /// When the file is damaged, hostile, or made for another machine. What was read of it by then
    /// is garbage that containerd collects.
    pub async fn import(
        &self,
        path: &Path,
        name: Option<&Reference>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, ImportError> {
        let read = |source| ImportError::Read {
            path: path.to_owned(),
            source,
        };
        let import = Import {
            images: self,
            path,
            progress,
        };
        let lease = Lease::create(&self.client, "import").await?;
        let is_dir = tokio::fs::metadata(path).await.map_err(read)?.is_dir();
        let found = match is_dir {
            true => import.layout(&lease).await?,
            false => import.archive(&lease).await?,
        };
        let mut imported = Vec::new();
        for (reference, target) in named(found, name, path)? {
            // Each image gives its own lease back; this one holds all blobs until the last is done.
            let own = Lease::create(&self.client, "import").await?;
            imported.push(import.finish(own, &reference, &target).await?);
        }
        lease.release().await;
        Ok(imported)
    }
}

/// One import at work.
struct Import<'a> {
    images: &'a Images,
    path: &'a Path,
    progress: &'a dyn Progress,
}

impl Import<'_> {
    /// Checks that all blobs are there, unpacks the layers, and records the image.
    async fn finish(
        &self,
        lease: Lease,
        reference: &Reference,
        target: &Descriptor,
    ) -> Result<Image, ImportError> {
        let client = &self.images.client;
        let documents = match documents(client, reference, &target.digest).await {
            Err(StoreError::Incomplete { digest, .. }) => return Err(self.missing(&digest)),
            found => found?,
        };
        for layer in &documents.manifest.layers {
            self.progress.layer(&layer.digest, LayerState::Waiting);
            let info = content::info(client, &layer.digest).await?;
            let info = info.ok_or_else(|| self.missing(&layer.digest))?;
            if u64::try_from(info.size).ok() != Some(layer.size) {
                return Err(self.mismatch(&layer.digest));
            }
        }
        let unpacker = Unpacker::new(client, &lease, &documents.manifest, &documents.config)?;
        for index in 0..documents.manifest.layers.len() {
            unpacker.unpack(index, self.progress).await?;
        }
        Ok(self
            .images
            .record(lease, reference, target, documents)
            .await?)
    }

    /// The images that an `index.json` lists.
    fn listed(&self, index: &[u8]) -> Result<Vec<Found>, ImportError> {
        let what = format!("index.json in {}", self.path.display());
        let Document::Index(Index { manifests, .. }) = Document::parse(&what, index)? else {
            return Err(self.no_images("index.json is not an index"));
        };
        let found = manifests.into_iter().map(|target| Found {
            names: name_of(&target.annotations).into_iter().collect(),
            target,
        });
        Ok(found.collect())
    }

    fn no_images(&self, problem: &str) -> ImportError {
        ImportError::NoImages {
            path: self.path.to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn refused(&self, problem: impl Into<String>) -> ImportError {
        ImportError::Refused {
            path: self.path.to_owned(),
            problem: problem.into(),
        }
    }

    fn missing(&self, digest: &str) -> ImportError {
        ImportError::Missing {
            path: self.path.to_owned(),
            digest: digest.to_owned(),
        }
    }

    fn mismatch(&self, digest: &str) -> ImportError {
        ImportError::Mismatch {
            path: self.path.to_owned(),
            digest: digest.to_owned(),
        }
    }

    fn writing(&self, error: WriteError) -> ImportError {
        match error {
            WriteError::Mismatch { expected } => self.mismatch(&expected),
            WriteError::Call(call) => call.into(),
        }
    }

    /// The manifest that `docker save` leaves out.
    async fn write_manifest(
        &self,
        lease: &Lease,
        config: Descriptor,
        layers: Vec<Descriptor>,
    ) -> Result<Descriptor, ImportError> {
        let media_type = DOCKER_MANIFEST.to_owned();
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type.clone(),
            config,
            layers,
        };
        let bytes = serde_json::to_vec(&manifest).expect("a manifest is plain data");
        let digest = digest_of(&bytes);
        let client = &self.images.client;
        let written = content::write_all(client, lease, (&digest, &bytes), Default::default());
        written.await.map_err(|error| self.writing(error))?;
        Ok(Descriptor {
            media_type,
            digest,
            size: bytes.len() as u64,
            ..Default::default()
        })
    }
}

/// The full name in an index's annotations; a bare tag is none.
fn name_of(annotations: &BTreeMap<String, String>) -> Option<Reference> {
    let full = annotations.get("io.containerd.image.name");
    let short = annotations.get("org.opencontainers.image.ref.name");
    let name = full.or(short.filter(|name| name.contains(['/', ':'])))?;
    name.parse().ok()
}

/// What to import under which name.
fn named(
    found: Vec<Found>,
    name: Option<&Reference>,
    path: &Path,
) -> Result<Vec<(Reference, Descriptor)>, ImportError> {
    let count = found.len();
    let nameless = || ImportError::Name {
        path: path.to_owned(),
        count,
    };
    if count == 0 {
        let problem = "its list of images is empty".to_owned();
        return Err(ImportError::NoImages {
            path: path.to_owned(),
            problem,
        });
    }
    if let Some(name) = name {
        let mut targets = found.into_iter().map(|f| f.target);
        return match (targets.next(), targets.next()) {
            (Some(target), None) => Ok(vec![(name.clone(), target)]),
            _ => Err(nameless()),
        };
    }
    if found.iter().any(|f| f.names.is_empty()) {
        return Err(nameless());
    }
    let pairs = found.into_iter().flat_map(|Found { names, target }| {
        names.into_iter().map(move |name| (name, target.clone()))
    });
    Ok(pairs.collect())
}

/// A blob of `docker save`, whose type its manifest does not tell.
fn saved_blob(media_type: &str, digest: &str, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_owned(),
        size,
        ..Default::default()
    }
}

/// The types of what `docker save` holds; containerd finds a layer's compression by itself.
const SAVED_CONFIG: &str = DOCKER_CONFIG;
const SAVED_LAYER: &str = DOCKER_LAYER;

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Found {
        let names = names.iter().map(|n| n.parse().unwrap()).collect();
        Found {
            names,
            target: Descriptor::default(),
        }
    }

    #[track_caller]
    fn check(files: &[&[&str]], name: Option<&str>, expected: Option<&str>) {
        let files = files.iter().map(|names| found(names)).collect();
        let name = name.map(|n| n.parse().unwrap());
        let names = named(files, name.as_ref(), Path::new("x.tar"));
        let names = names.map(|all| {
            all.iter()
                .map(|(n, _)| n.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        });
        assert_eq!(names.ok().as_deref(), expected);
    }

    #[test]
    fn a_given_name_is_for_one_image() {
        check(&[&[]], Some("a"), Some("docker.io/library/a:latest"));
        check(&[&["x"]], Some("a"), Some("docker.io/library/a:latest"));
        check(&[&["x"], &["y"]], Some("a"), None);
    }

    #[test]
    fn without_one_the_files_own_names_are_taken() {
        check(
            &[&["x", "y:1"]],
            None,
            Some("docker.io/library/x:latest docker.io/library/y:1"),
        );
        check(&[&[]], None, None);
        check(&[], None, None);
    }

    #[test]
    fn a_bare_tag_is_no_name() {
        let annotations = |key: &str, value: &str| BTreeMap::from([(key.into(), value.into())]);
        let short = "org.opencontainers.image.ref.name";
        assert!(name_of(&annotations(short, "latest")).is_none());
        assert!(name_of(&annotations(short, "docker.io/a/b:1")).is_some());
        assert!(name_of(&annotations("io.containerd.image.name", "a")).is_some());
    }
}
