//! A node in a temporary folder, with an image made of a static busybox.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use opr_host::{
    adapter::{Adapter, Containerd, Event, Sandbox, SandboxSpec},
    config::{Config, Limits},
    id::{ClassName, SandboxId},
};
use sha2::{Digest, Sha256};
use tokio::sync::broadcast;

pub(crate) const IMAGE: &str = "opr.test/busybox:1";
const BUSYBOX: &str = "/bin/busybox";

/// A running node; its containerd is ended by `end`.
pub(crate) struct Node {
    pub(crate) config: Arc<Config>,
    pub(crate) adapter: Arc<Containerd>,
    _dir: tempfile::TempDir,
}

/// Whether this machine can run these tests; `REQUIRE_ALL=1` turns a no into a failure.
pub(crate) fn is_able() -> bool {
    let able = rustix::process::geteuid().is_root() && Path::new(BUSYBOX).exists();
    assert!(
        able || std::env::var_os("REQUIRE_ALL").is_none(),
        "needs root and busybox-static"
    );
    able
}

impl Node {
    /// `n` below 100 tells nodes of tests that run side by side apart.
    pub(crate) async fn start(n: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let mut config = Config::load(None, &|_| None).unwrap();
        config.run_dir = dir.path().join("run");
        config.state_dir = dir.path().join("state");
        config.containerd.namespace = format!("opr-t{n}-{}", std::process::id());
        config.sandbox.bridge = format!("oprt{n}");
        config.sandbox.subnet = format!("10.213.{n}.0/24");
        config.sandbox.first_id = 0x6000_0000 + n * 0x40_0000;
        config.sandbox.max = 64;
        config.sandbox.pool = 2;
        let config = Arc::new(config);
        let adapter = Containerd::start(config.clone()).await.unwrap();
        import(&config, dir.path());
        Self {
            config,
            adapter,
            _dir: dir,
        }
    }

    /// The same node after a restart of the daemon.
    pub(crate) async fn restart(&mut self) -> Vec<Sandbox> {
        self.adapter.release().await.unwrap();
        self.adapter = Containerd::start(self.config.clone()).await.unwrap();
        self.adapter.adopt().await.unwrap()
    }

    pub(crate) async fn end(self) {
        self.adapter.adopt().await.unwrap();
        self.adapter.stop().await.unwrap();
        for class in self.config.class.keys() {
            remove_groups(&format!("{}/{class}", self.config.containerd.namespace));
        }
        remove_groups(&self.config.containerd.namespace);
        let bridge = &self.config.sandbox.bridge;
        let _ = Command::new("ip").args(["link", "del", bridge]).output();
        let subnet = &self.config.sandbox.subnet;
        let masquerade = ["-s", subnet, "!", "-o", bridge, "-j", "MASQUERADE"];
        let args = [
            &["--wait", "-t", "nat", "-D", "POSTROUTING"],
            &masquerade[..],
        ]
        .concat();
        let _ = Command::new("iptables").args(args).output();
        for (chain, own) in [("INPUT", "IN"), ("FORWARD", "FW")] {
            let own = format!("OPR-{own}-{bridge}");
            let run = |args: &[&str]| drop(Command::new("iptables").args(args).output());
            for side in ["-i", "-o"] {
                run(&["--wait", "-D", chain, side, bridge, "-j", &own]);
            }
            run(&["--wait", "-F", &own]);
            run(&["--wait", "-X", &own]);
        }
        assert_eq!(leaks(&self.config.run_dir), Vec::<String>::new());
    }
}

/// What runs `command` in the class `class`.
pub(crate) fn sandbox(id: &str, class: &str, command: &[&str]) -> SandboxSpec {
    SandboxSpec {
        id: SandboxId::try_new(id).unwrap(),
        class: ClassName::try_new(class).unwrap(),
        image: IMAGE.parse().unwrap(),
        hostname: id.into(),
        command: Some(command.iter().map(|&arg| arg.to_owned()).collect()),
        env: vec![],
        working_dir: None,
        mounts: vec![],
        limits: Limits {
            cpus: 1.0,
            memory_bytes: 64 << 20,
        },
        terminal: false,
        labels: BTreeMap::from([("test".into(), id.into())]),
    }
}

/// All that the main process wrote, once it has ended.
pub(crate) async fn output_of(node: &Node, spec: SandboxSpec) -> String {
    let mut events = node.adapter.events();
    let id = spec.id.clone();
    let sandbox = node.adapter.create(spec).await.unwrap();
    exit_of(&mut events, &id).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while !sandbox.output.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    node.adapter.delete(&id).await.unwrap();
    String::from_utf8(sandbox.output.tail()).unwrap()
}

pub(crate) async fn exit_of(events: &mut broadcast::Receiver<Event>, wanted: &SandboxId) -> u32 {
    let wait = async {
        loop {
            match events.recv().await.unwrap() {
                Event::Exited { id, code } if id == *wanted => return code,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap()
}

/// Mounts, and folders of sandboxes and slots, beneath `run_dir`.
pub(crate) fn leaks(run_dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut all: Vec<_> = mounts
        .lines()
        .filter(|line| line.contains(run_dir.to_str().unwrap()))
        .map(ToOwned::to_owned)
        .collect();
    for name in ["sandboxes", "slots"] {
        let entries = fs::read_dir(run_dir.join(name)).unwrap();
        all.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
    }
    all
}

fn remove_groups(path: &str) {
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
        if line.contains(" - cgroup") {
            let root = line.split(' ').nth(4).unwrap();
            let _ = fs::remove_dir(Path::new(root).join(path));
        }
    }
}

/// Imports an image (OCI image layout 1.0.0) with one layer: busybox and its names.
fn import(config: &Config, dir: &Path) {
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
        "sh", "httpd", "id", "cat", "mount", "touch", "sleep", "wget", "ls", "dd", "unshare", "nc",
        "ip", "env", "tail", "stat",
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
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
