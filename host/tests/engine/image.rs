//! An image made of a static busybox, as an archive (OCI image layout 1.0.0).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use opr_host::config::Config;
use sha2::{Digest, Sha256};

pub(crate) const IMAGE: &str = "opr.test/busybox:1";
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Imports an image with one layer: busybox and its names.
pub(crate) fn import(config: &Config, dir: &Path) {
    let layout = dir.join("layout");
    let layer = layer();
    let diff_id = hex(&layer);
    let layer_digest = blob(&layout, &layer);
    let document = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "FROM=image"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
    });
    let document = document.to_string().into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": blob(&layout, &document), "size": document.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer_digest, "size": layer.len() }],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": blob(&layout, &manifest), "size": manifest.len(),
        "annotations": { "io.containerd.image.name": IMAGE } }] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let tar = dir.join("image.tar");
    run("tar", &["-C", text(&layout), "-cf", text(&tar), "."]);
    let socket = config.containerd_socket();
    let namespace = &config.containerd.namespace;
    run(
        "ctr",
        &[
            "-a",
            text(&socket),
            "-n",
            namespace,
            "image",
            "import",
            text(&tar),
        ],
    );
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, kind: tar::EntryType, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, path, data).unwrap();
    };
    for dir in ["bin", "etc", "tmp", "root"] {
        add(dir, 0o755, tar::EntryType::Directory, b"");
    }
    let busybox = fs::read(BUSYBOX).unwrap();
    add("bin/busybox", 0o755, tar::EntryType::Regular, &busybox);
    add(
        "etc/passwd",
        0o644,
        tar::EntryType::Regular,
        b"root:x:0:0::/root:/bin/sh\n",
    );
    for name in [
        "sh", "echo", "httpd", "id", "cat", "mount", "touch", "sleep", "wget", "ls", "dd",
        "unshare", "nc", "ip", "env", "tail", "stat", "ping", "timeout", "sysctl", "stty", "tty",
        "seq", "true", "sync", "mkdir",
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{name}"), "busybox")
            .unwrap();
    }
    tar.into_inner().unwrap()
}

fn blob(layout: &Path, bytes: &[u8]) -> String {
    let folder: PathBuf = layout.join("blobs/sha256");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(hex(bytes)), bytes).unwrap();
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
