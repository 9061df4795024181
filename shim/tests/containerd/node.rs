//! A containerd that lives as long as a test, and all that is told to it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use containerd_client::services::v1::{
    containers_client::ContainersClient, tasks_client::TasksClient, version_client::VersionClient,
};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};
use tonic::{Request, transport::Channel};

use super::{container::Container, events::Events, rootfs, traces};

/// What is waited for happens within this, or never.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// The runtime to test instead of this crate's, as in `io.containerd.runc.v2`: tells whether the suite itself is right.
const UNDER_TEST: &str = "OPR_TEST_RUNTIME";
pub(crate) const RETRY: Duration = Duration::from_millis(5);

/// Which shim makes a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    Ours,
    Peer,
}

impl Runtime {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Ours => std::env::var(UNDER_TEST).unwrap_or("io.containerd.opr.v1".into()),
            Self::Peer => "io.containerd.runc.v2".into(),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Peer => "peer",
        }
    }
}

/// A containerd with root, state and socket of its own. Dropping it ends it and all that it started.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) channel: Channel,
    pub(crate) events: Events,
    /// Where shims said that they listen.
    pub(crate) sockets: Mutex<BTreeSet<PathBuf>>,
    name: String,
    process: Mutex<Child>,
}

/// Whether this machine can run these tests. `REQUIRE_ALL=1` makes a skip a failure.
pub(crate) fn is_able() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let programs = ["containerd", "runc", "containerd-shim-runc-v2"];
    let missing = if !rustix::process::geteuid().is_root() {
        "root"
    } else if !Path::new(rootfs::BUSYBOX).exists() {
        "a static busybox"
    } else if let Some(program) = programs.iter().find(|name| !is_program(name)) {
        program
    } else {
        return true;
    };
    assert!(
        std::env::var_os("REQUIRE_ALL").is_none(),
        "this test needs {missing}"
    );
    eprintln!("skipped: needs {missing}");
    false
}

impl Node {
    pub(crate) async fn start() -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix("opr-shim-")
            .tempdir()
            .unwrap();
        // A container's root may be nobody here, and has to reach its root file system.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        write_config(dir.path());
        rootfs::prepare(dir.path());
        let process = spawn(dir.path());
        let channel = connect(&dir.path().join("containerd.sock")).await;
        let events = Events::follow(&channel).await;
        Self {
            dir,
            channel,
            events,
            sockets: Mutex::default(),
            name: format!("opr-shim-{}-{number}", std::process::id()),
            process: Mutex::new(process),
        }
    }

    /// A container that `runtime` is going to make. Each runtime has a namespace of containerd of its own, so that
    /// both can make one of the same name.
    pub(crate) fn container(&self, runtime: Runtime, id: &str) -> Container<'_> {
        Container::new(self, runtime, id)
    }

    pub(crate) fn namespace(&self, runtime: Runtime) -> String {
        format!("{}-{}", self.name, runtime.suffix())
    }

    /// What the names of all that belongs to this node contain.
    pub(crate) fn marks(&self) -> [&str; 2] {
        [self.dir.path().to_str().unwrap(), &self.name]
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("containerd.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.lock().unwrap().id()
    }

    /// Starts containerd again on the same state.
    pub(crate) async fn restart(&mut self) {
        *self.process.lock().unwrap() = spawn(self.dir.path());
        self.channel = connect(&self.socket()).await;
        self.events.follow_again(&self.channel).await;
    }

    /// Kills containerd.
    pub(crate) fn stop(&self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        let _ = process.wait();
    }

    pub(crate) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    pub(crate) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone())
    }

    pub(crate) fn request<T>(&self, runtime: Runtime, body: T) -> Request<T> {
        let mut request = Request::new(body);
        let namespace = self.namespace(runtime).parse().unwrap();
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        request
    }

    /// Where containerd keeps the bundle of a container.
    pub(crate) fn bundle(&self, runtime: Runtime, id: &str) -> PathBuf {
        self.dir
            .path()
            .join("state/io.containerd.runtime.v2.task")
            .join(self.namespace(runtime))
            .join(id)
    }

    /// Sees that nothing is left of the containers, and ends the node.
    pub(crate) async fn end(self) {
        let is_clean = || traces::of(&self).is_empty();
        eventually(is_clean, || format!("{:#?}", traces::of(&self))).await;
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// Waits until something is so that nobody tells of: what ends on its own after an answer.
pub(crate) async fn eventually(is_so: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(RETRY).await;
        }
    };
    if tokio::time::timeout(DEADLINE, wait).await.is_err() {
        panic!("it did not become so: {}", otherwise());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
        for pid in traces::pids(&self.marks()) {
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
        for point in traces::mounts(&self.marks()).iter().rev() {
            let _ = unmount(point.as_str(), UnmountFlags::DETACH);
        }
        // What was killed leaves its cgroup a moment later.
        let n_tries = 100;
        for _ in 0..n_tries {
            traces::cgroups(&self.name).iter().rev().for_each(|dir| {
                let _ = fs::remove_dir(dir);
            });
            if traces::cgroups(&self.name).is_empty() {
                break;
            }
            std::thread::sleep(RETRY);
        }
        for socket in self.sockets.lock().unwrap().iter() {
            let _ = fs::remove_file(socket);
        }
        for runtime in [Runtime::Ours, Runtime::Peer] {
            // runc keeps the folder of a namespace of containerd for good.
            let state = Path::new("/run/containerd/runc").join(self.namespace(runtime));
            let _ = fs::remove_dir_all(state);
        }
    }
}

fn write_config(dir: &Path) {
    let path = dir.display();
    let config = format!(
        r#"version = 2
root = "{path}/root"
state = "{path}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.restart", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{path}/containerd.sock"
"#
    );
    fs::write(dir.join("config.toml"), config).unwrap();
}

/// What containerd executes. It stands beside the programs that cargo makes for tests.
pub(crate) fn shim() -> PathBuf {
    let shim = Path::new(env!("CARGO_BIN_EXE_containerd-shim-opr-v1-daemon"));
    let shim = shim.with_file_name("containerd-shim-opr-v1");
    assert!(
        shim.exists(),
        "{}: missing; scripts/build makes it",
        shim.display()
    );
    shim
}

fn spawn(dir: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let mut path = shim().parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    Command::new("containerd")
        .arg("--config")
        .arg(dir.join("config.toml"))
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

async fn connect(socket: &Path) -> Channel {
    let answer = async {
        loop {
            if let Ok(channel) = containerd_client::connect(socket).await
                && VersionClient::new(channel.clone())
                    .version(())
                    .await
                    .is_ok()
            {
                return channel;
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::time::timeout(DEADLINE, answer)
        .await
        .expect("containerd answers")
}
