//! A node in a temporary folder, with a number that no other one on the machine has.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opr_host::{
    adapter::{Adapter, Containerd, Event, Mount, Sandbox, SandboxSpec, Source},
    config::{Config, Limits},
    id::{ClassName, SandboxId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::broadcast,
};

use crate::{
    image::{BUSYBOX, IMAGE, import},
    number::Number,
    traces::{Traces, traces},
};

const PROGRAMS: [&str; 6] = ["containerd", "ctr", "runc", "ip", "iptables", "ip6tables"];

/// Says that it began, then serves `/etc` on port 3000.
pub(crate) const SERVER: [&str; 4] = [
    "sh",
    "-c",
    "echo began; exec httpd -f -p 3000 -h /etc",
    "sh",
];

/// A running node; its containerd is ended by `end`.
pub(crate) struct Node {
    pub(crate) config: Arc<Config>,
    pub(crate) adapter: Arc<Containerd>,
    has_ended: bool,
    number: Number,
    _dir: tempfile::TempDir,
}

/// Whether this machine can run these tests. Counts and prints what is skipped; `REQUIRE_ALL=1` makes
/// a skip a failure.
pub(crate) fn is_able() -> bool {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let missing = if !rustix::process::geteuid().is_root() {
        "root"
    } else if !Path::new(BUSYBOX).exists() {
        "a static busybox"
    } else if let Some(program) = PROGRAMS.into_iter().find(|name| !is_program(name)) {
        program
    } else {
        return true;
    };
    assert!(
        std::env::var_os("REQUIRE_ALL").is_none(),
        "this test needs {missing}"
    );
    let n = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    eprintln!("skipped {n}: needs {missing}");
    false
}

/// Where the shim is built: beside the folder that the test's own program is in.
pub(crate) fn shim_dir() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(2).unwrap().to_owned()
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With settings that differ from those of the other tests.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let number = Number::claim();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let mut config = Config::load(None, &|_| None).unwrap();
        config.run_dir = dir.path().join("run");
        config.state_dir = dir.path().join("state");
        config.containerd.namespace = number.name();
        config.containerd.shim_dir = Some(shim_dir());
        config.sandbox.bridge = number.bridge();
        config.sandbox.subnet = number.subnet();
        config.sandbox.first_id = number.first_id();
        config.sandbox.max = 64;
        config.sandbox.pool = 2;
        change(&mut config);
        let config = Arc::new(config);
        let adapter = Containerd::start(config.clone()).await.unwrap();
        import(&config, dir.path());
        Self {
            config,
            adapter,
            has_ended: false,
            number,
            _dir: dir,
        }
    }

    /// Tells this node from the others under test: at most two digits.
    pub(crate) fn number(&self) -> u32 {
        self.number.value()
    }

    /// The same node after a restart of the daemon.
    pub(crate) async fn restart(&mut self) -> Vec<Sandbox> {
        self.adapter.release().await.unwrap();
        self.adapter = Containerd::start(self.config.clone()).await.unwrap();
        self.adapter.adopt().await.unwrap()
    }

    /// Removes the node, and sees that nothing of it is left.
    pub(crate) async fn end(mut self) {
        self.has_ended = true;
        self.adapter.remove_all().await.unwrap();
        // A shim that was never told that it is not needed stays for some seconds.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !traces(&self.config).is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(traces(&self.config), Traces::new());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.has_ended {
            // The test failed: its thread may wait here for what an end would have done.
            let removed = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(self.adapter.remove_all())
            });
            eprintln!("removed the node of a test that failed: {removed:?}");
        }
        // runc keeps the folder of a containerd namespace for good.
        let runc = Path::new("/run/containerd/runc").join(&self.config.containerd.namespace);
        let _ = fs::remove_dir(runc);
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

/// `/tmp`, writable, in the sandbox's own tmpfs.
pub(crate) fn tmp() -> Mount {
    Mount {
        source: Source::Scratch("tmp".into()),
        target: "/tmp".into(),
        is_writable: true,
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

/// What [`SERVER`] answers, once it listens.
pub(crate) async fn fetch(node: &Node, id: &SandboxId) -> String {
    let connect = async {
        loop {
            match node.adapter.dial(id, 3000).await {
                Ok(stream) => return stream,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let mut stream = tokio::time::timeout(Duration::from_secs(10), connect)
        .await
        .unwrap();
    stream
        .write_all(b"GET /passwd HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
