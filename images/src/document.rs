//! The JSON documents of an image (index, manifest, config) of OCI and of Docker, and their labels.
//!
//! ```json
//! {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
//!  "config": {"mediaType": "…", "digest": "sha256:…", "size": 7},
//!  "layers": [{"mediaType": "…tar+gzip", "digest": "sha256:…", "size": 32654}]}
//! ```
//!
//! They come from strangers: every number is bounded before anything is done with it.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Layers of one image; overlayfs itself stops at 500 (Linux `OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;
/// Manifests in one index.
const MAX_MANIFESTS: usize = 1000;

/// `application/vnd.oci.image.manifest.v1+json`
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `application/vnd.oci.image.index.v1+json`
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// `application/vnd.docker.distribution.manifest.v2+json`
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// `application/vnd.docker.distribution.manifest.list.v2+json`
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// `application/vnd.docker.container.image.v1+json`
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// `application/vnd.docker.image.rootfs.diff.tar`
pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// A document of an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is not the JSON that it should be.
    #[error("{what} is not valid")]
    Json {
        /// Which document.
        what: String,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// It says something that no image may say.
    #[error("{what} {problem}")]
    Invalid {
        /// Which document.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// The image is not made for this machine.
    #[error("{what} has nothing for {platform}")]
    Platform {
        /// Which document.
        what: String,
        /// This machine's platform, as in `linux/amd64`.
        platform: String,
    },
}

/// A blob by digest, with its type and size.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

/// A config with what the host uses of it (OCI image-spec, "Image Configuration").
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<RunConfig>,
    #[serde(default)]
    pub(crate) rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    pub(crate) env: Option<Vec<String>>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) stop_signal: Option<String>,
}

/// What a manifest's digest led to.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Tells manifest from index by what is in it: media types are often left out.
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct Kind {
            manifests: Option<serde::de::IgnoredAny>,
        }
        let kind: Kind = from_json(what, bytes)?;
        if kind.manifests.is_some() {
            let index: Index = from_json(what, bytes)?;
            bounded(what, "manifests", index.manifests.len(), MAX_MANIFESTS)?;
            index.manifests.iter().try_for_each(|d| d.check(what))?;
            return Ok(Self::Index(index));
        }
        let manifest: Manifest = from_json(what, bytes)?;
        bounded(what, "layers", manifest.layers.len(), MAX_LAYERS)?;
        manifest.config.check(what)?;
        manifest.layers.iter().try_for_each(|d| d.check(what))?;
        Ok(Self::Manifest(manifest))
    }

    /// The document's media type: its own word, else the registry's, else OCI's.
    pub(crate) fn media_type(&self, told: &str) -> String {
        let (own, oci, known) = match self {
            Self::Manifest(m) => (&m.media_type, OCI_MANIFEST, [OCI_MANIFEST, DOCKER_MANIFEST]),
            Self::Index(i) => (&i.media_type, OCI_INDEX, [OCI_INDEX, DOCKER_INDEX]),
        };
        let told = [own.as_str(), told].into_iter().find(|t| known.contains(t));
        told.unwrap_or(oci).to_owned()
    }

    /// The labels by which containerd's garbage collector goes from this document to its children.
    ///
    /// Of an index only `chosen` is followed, since nothing else was fetched.
    ///
    /// Source: containerd `images.ChildGCLabels` and `images.SetChildrenMappedLabels`.
    pub(crate) fn gc_labels(&self, chosen: &str) -> HashMap<String, String> {
        let label = |kind: String, digest: &str| {
            (
                format!("containerd.io/gc.ref.content.{kind}"),
                digest.to_owned(),
            )
        };
        match self {
            Self::Index(_) => HashMap::from([label("m.0".to_owned(), chosen)]),
            Self::Manifest(manifest) => {
                let layers = manifest.layers.iter().enumerate();
                layers
                    .map(|(i, layer)| label(format!("l.{i}"), &layer.digest))
                    .chain([label("config".to_owned(), &manifest.config.digest)])
                    .collect()
            }
        }
    }
}

impl Index {
    /// The manifest for this machine.
    pub(crate) fn choose(&self, what: &str) -> Result<&Descriptor, DocumentError> {
        let fits = |d: &&Descriptor| match &d.platform {
            Some(p) => p.os == "linux" && p.architecture == architecture(),
            None => false,
        };
        let mut untold = self.manifests.iter().filter(|d| d.platform.is_none());
        match (
            self.manifests.iter().find(fits),
            untold.next(),
            untold.next(),
        ) {
            (Some(found), _, _) | (None, Some(found), None) => Ok(found),
            _ => Err(DocumentError::Platform {
                what: what.to_owned(),
                platform: platform(),
            }),
        }
    }
}

impl Descriptor {
    /// Refuses digests that are no sha256 and sizes that no file has.
    pub(crate) fn check(&self, what: &str) -> Result<(), DocumentError> {
        let invalid = |problem| DocumentError::Invalid {
            what: what.to_owned(),
            problem,
        };
        if !is_digest(&self.digest) {
            return Err(invalid(format!(
                "names {:?}, which is no sha256 digest",
                self.digest
            )));
        }
        if i64::try_from(self.size).is_err() {
            return Err(invalid(format!(
                "gives {} the size {}",
                self.digest, self.size
            )));
        }
        Ok(())
    }

    pub(crate) fn to_containerd(&self) -> containerd_client::types::Descriptor {
        containerd_client::types::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            ..Default::default()
        }
    }
}

impl ConfigFile {
    pub(crate) fn parse(digest: &str, bytes: &[u8]) -> Result<Self, DocumentError> {
        let what = format!("config {digest}");
        let config: Self = from_json(&what, bytes)?;
        if !config.rootfs.diff_ids.iter().all(|id| is_digest(id)) {
            let problem = "lists a layer that is no sha256 digest".to_owned();
            return Err(DocumentError::Invalid { what, problem });
        }
        let is_ours = config.os.is_empty() || config.os == "linux";
        if !is_ours || !(config.architecture.is_empty() || config.architecture == architecture()) {
            return Err(DocumentError::Platform {
                what,
                platform: platform(),
            });
        }
        Ok(config)
    }

    /// The names of the snapshots with one layer, two layers, and so on; the last is the image's.
    ///
    /// Source: OCI image-spec, "Layer ChainID".
    pub(crate) fn chain_ids(&self) -> Vec<String> {
        let mut chain: Vec<String> = Vec::with_capacity(self.rootfs.diff_ids.len());
        for diff_id in &self.rootfs.diff_ids {
            chain.push(match chain.last() {
                Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()),
                None => diff_id.clone(),
            });
        }
        chain
    }
}

/// `sha256:…` of `bytes`.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
    text
}

/// Whether `text` is `sha256:` and 64 lower-case hexadecimal digits.
pub(crate) fn is_digest(text: &str) -> bool {
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(is_hex))
}

/// This machine's architecture in the words of Go, as OCI asks for.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn platform() -> String {
    format!("linux/{}", architecture())
}

fn bounded(what: &str, things: &str, count: usize, limit: usize) -> Result<(), DocumentError> {
    if count <= limit {
        return Ok(());
    }
    let problem = format!("has {count} {things}; at most {limit} are taken");
    Err(DocumentError::Invalid {
        what: what.to_owned(),
        problem,
    })
}

fn from_json<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, DocumentError> {
    let json = serde_json::from_slice(bytes);
    json.map_err(|source| DocumentError::Json {
        what: what.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(c: char) -> String {
        format!("sha256:{}", String::from(c).repeat(64))
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let diff_ids = vec![digest('a'), digest('b')];
        let config = ConfigFile {
            rootfs: RootFs { diff_ids },
            ..Default::default()
        };
        let second = digest_of(format!("{} {}", digest('a'), digest('b')).as_bytes());
        assert_eq!(config.chain_ids(), [digest('a'), second]);
    }

    #[test]
    fn only_lower_case_sha256_is_a_digest() {
        assert!(is_digest(&digest('a')));
        assert!(!is_digest(&digest('A')));
        assert!(!is_digest("sha256:../../etc/passwd"));
        assert!(!is_digest("sha512:aa"));
        assert!(!is_digest(""));
    }

    #[test]
    fn labels_of_a_manifest_lead_to_config_and_layers() {
        let of = |c| Descriptor {
            digest: digest(c),
            size: 1,
            ..Default::default()
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: of('c'),
            layers: vec![of('a'), of('b')],
        };
        let labels: BTreeMap<_, _> = Document::Manifest(manifest)
            .gc_labels("")
            .into_iter()
            .collect();
        let expected = [
            ("containerd.io/gc.ref.content.config", digest('c')),
            ("containerd.io/gc.ref.content.l.0", digest('a')),
            ("containerd.io/gc.ref.content.l.1", digest('b')),
        ];
        assert_eq!(labels, expected.map(|(k, v)| (k.to_owned(), v)).into());
    }

    #[test]
    fn refuses_documents_without_bounds() {
        let layer = format!(r#"{{"digest":"{}","size":1}}"#, digest('a'));
        let many = vec![layer.as_str(); MAX_LAYERS + 1].join(",");
        let text = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{many}]}}"#);
        let error = Document::parse("manifest", text.as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "manifest has 501 layers; at most 500 are taken"
        );
    }

    #[test]
    fn an_index_is_asked_for_this_machine() {
        let of = |c, platform| Descriptor {
            digest: digest(c),
            platform,
            ..Default::default()
        };
        let linux = |architecture: &str| {
            Some(Platform {
                architecture: architecture.to_owned(),
                os: "linux".to_owned(),
            })
        };
        let index = Index {
            media_type: String::new(),
            manifests: vec![of('a', linux("vax")), of('b', linux(architecture()))],
        };
        assert_eq!(index.choose("index").unwrap().digest, digest('b'));
        let index = Index {
            media_type: String::new(),
            manifests: vec![of('a', linux("vax"))],
        };
        assert!(index.choose("index").is_err());
        let index = Index {
            media_type: String::new(),
            manifests: vec![of('a', None)],
        };
        assert_eq!(index.choose("index").unwrap().digest, digest('a'));
    }
}
