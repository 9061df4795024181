//! Small images made by the tests: three layers, each compressed in another way, with whiteouts.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A blob and its digest.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: &'static str,
}

/// An image in memory.
pub(crate) struct TestImage {
    pub(crate) layers: Vec<Blob>,
    pub(crate) config: Blob,
    pub(crate) manifest: Blob,
    /// The layers' tars, before compression.
    pub(crate) tars: Vec<Vec<u8>>,
}

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Blob {
    pub(crate) fn new(bytes: Vec<u8>, media_type: &'static str) -> Self {
        Self {
            digest: digest(&bytes),
            bytes,
            media_type,
        }
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }

    pub(crate) fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap()
    }
}

impl TestImage {
    /// Files `etc/hello` (of the top layer), `etc/kept`, `dir/new`; gone are `etc/gone`, `dir/old`.
    /// `seed` makes it another image, `padding` makes its first layer larger by so many bytes.
    pub(crate) fn new(seed: &str, padding: usize) -> Self {
        let noise = noise(seed, padding);
        let tars = vec![
            tar(&[
                ("etc/hello", b"first"),
                ("etc/kept", b"kept"),
                ("etc/gone", b"gone"),
                ("dir/old", b"old"),
                ("seed", seed.as_bytes()),
                ("noise", &noise),
            ]),
            tar(&[
                ("etc/.wh.gone", b""),
                ("dir/.wh..wh..opq", b""),
                ("dir/new", b"new"),
            ]),
            tar(&[("etc/hello", b"third"), ("seed3", seed.as_bytes())]),
        ];
        Self::of(tars)
    }

    pub(crate) fn of(tars: Vec<Vec<u8>>) -> Self {
        let layers: Vec<Blob> = tars
            .iter()
            .enumerate()
            .map(|(i, tar)| compressed(tar, i))
            .collect();
        let diff_ids: Vec<String> = tars.iter().map(|tar| digest(tar)).collect();
        // A builder that takes more than one step on an image goes by it.
        let history = vec![json!({"created_by": "a test"}); diff_ids.len()];
        let config = json!({
            "architecture": architecture(), "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": {"Env": ["PATH=/bin", "A=b"], "Entrypoint": ["/bin/run"], "Cmd": ["x"],
                "WorkingDir": "/work", "User": "7:8", "Labels": {"k": "v"}, "StopSignal": "SIGINT"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = Blob::new(config.to_string().into_bytes(), kind);
        let mut image = Self {
            layers,
            config,
            manifest: Blob::new(vec![], OCI_MANIFEST),
            tars,
        };
        image.remake_manifest();
        image
    }

    /// Writes the manifest anew after a part has been changed.
    pub(crate) fn remake_manifest(&mut self) {
        let layers: Vec<Value> = self.layers.iter().map(Blob::descriptor).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": self.config.descriptor(), "layers": layers});
        self.manifest = Blob::new(manifest.to_string().into_bytes(), OCI_MANIFEST);
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.layers.iter().chain([&self.config, &self.manifest])
    }

    /// `index.json` with one image, called `name`.
    pub(crate) fn index(&self, name: &str) -> String {
        let mut entry = self.manifest.descriptor();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        json!({"schemaVersion": 2, "manifests": [entry]}).to_string()
    }

    /// Writes an OCI layout.
    pub(crate) fn write_layout(&self, dir: &Path, name: &str) {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        fs::write(dir.join("index.json"), self.index(name)).unwrap();
        for blob in self.blobs() {
            fs::write(dir.join("blobs/sha256").join(blob.hex()), &blob.bytes).unwrap();
        }
    }

    /// Writes an OCI archive; `blobs` come first, as some tools do it.
    pub(crate) fn write_archive(&self, path: &Path, name: &str) {
        let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
        for blob in self.blobs() {
            append(
                &mut archive,
                &format!("blobs/sha256/{}", blob.hex()),
                &blob.bytes,
            );
        }
        append(
            &mut archive,
            "oci-layout",
            br#"{"imageLayoutVersion": "1.0.0"}"#,
        );
        append(&mut archive, "index.json", self.index(name).as_bytes());
        archive.finish().unwrap();
    }

    /// Writes what `docker save` writes: uncompressed layers, of which the last is a link.
    pub(crate) fn write_saved(&self, path: &Path, tags: &[&str]) {
        let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
        let config = format!("{}.json", self.config.hex());
        append(&mut archive, &config, &self.config.bytes);
        let mut layers = Vec::new();
        for (i, tar) in self.tars.iter().enumerate() {
            append(&mut archive, &format!("layer{i}/layer.tar"), tar);
            layers.push(format!("layer{i}/layer.tar"));
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        let last = layers.last_mut().unwrap();
        let target = format!("../{last}");
        archive
            .append_link(&mut header, "linked/layer.tar", target)
            .unwrap();
        *last = "linked/layer.tar".to_owned();
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]);
        append(
            &mut archive,
            "manifest.json",
            manifest.to_string().as_bytes(),
        );
        archive.finish().unwrap();
    }
}

/// Checks the files that [`TestImage::new`] promises below `root`.
#[track_caller]
pub(crate) fn check_files(root: &Path) {
    let read = |name: &str| fs::read_to_string(root.join(name)).ok();
    assert_eq!(read("etc/hello").as_deref(), Some("third"));
    assert_eq!(read("etc/kept").as_deref(), Some("kept"));
    assert_eq!(read("dir/new").as_deref(), Some("new"));
    assert_eq!(read("etc/gone"), None);
    assert_eq!(read("dir/old"), None);
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        append(&mut archive, name, bytes);
    }
    archive.into_inner().unwrap()
}

pub(crate) fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    archive.append_data(&mut header, name, bytes).unwrap();
}

fn compressed(tar: &[u8], index: usize) -> Blob {
    match index % 3 {
        0 => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(tar).unwrap();
            let bytes = gzip.finish().unwrap();
            Blob::new(bytes, "application/vnd.oci.image.layer.v1.tar+gzip")
        }
        1 => {
            let bytes = zstd::encode_all(tar, 1).unwrap();
            Blob::new(bytes, "application/vnd.oci.image.layer.v1.tar+zstd")
        }
        _ => Blob::new(tar.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
    }
}

/// Bytes that no compression makes smaller.
fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 32);
    let mut block = Sha256::digest(seed);
    while bytes.len() < length {
        bytes.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A directory for a test's files.
pub(crate) fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::Builder::new()
        .prefix("opr-images-")
        .tempdir()
        .unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}
