//! A containerd that lives as long as a test.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use opr_images::Images;
use rustix::mount::{UnmountFlags, unmount};

use crate::{mounts_below, run};

/// A containerd with root, state and socket of its own. Dropping it stops it, unmounts all of its
/// mounts, and removes its files.
pub(crate) struct Containerd {
    pub(crate) dir: tempfile::TempDir,
    process: Child,
}

impl Containerd {
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("opr-images-")
            .tempdir()
            .unwrap();
        let path = dir.path().display();
        let config = format!(
            r#"version = 2
root = "{path}/root"
state = "{path}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.restart", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{path}/containerd.sock"
[plugins."io.containerd.gc.v1.scheduler"]
  schedule_delay = "0s"
  startup_delay = "0s"
"#
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let process = spawn(&dir);
        let containerd = Self { dir, process };
        containerd.wait();
        containerd
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("containerd.sock")
    }

    pub(crate) async fn images(&self) -> Images {
        self.images_in("test").await
    }

    pub(crate) async fn images_in(&self, namespace: &str) -> Images {
        Images::connect(&self.socket(), namespace, "overlayfs")
            .await
            .unwrap()
    }

    /// Kills it and starts it again on the same state.
    pub(crate) fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = spawn(&self.dir);
        self.wait();
    }

    /// Runs `ctr` against it.
    #[track_caller]
    pub(crate) fn ctr(&self, arguments: &[&str]) -> String {
        let socket = self.socket();
        let first = ["--address", socket.to_str().unwrap(), "--namespace", "test"];
        run("ctr", &[&first, arguments].concat())
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let socket = self.socket();
        let answers = || {
            let version = Command::new("ctr")
                .arg("--address")
                .arg(&socket)
                .arg("version")
                .output();
            version.unwrap().status.success()
        };
        while !answers() {
            assert!(
                Instant::now() < deadline,
                "containerd does not answer: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

fn spawn(dir: &tempfile::TempDir) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.path().join("log"))
        .unwrap();
    Command::new("containerd")
        .arg("--config")
        .arg(dir.path().join("config.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for point in mounts_below(self.dir.path()).iter().rev() {
            let _ = unmount(point.as_str(), UnmountFlags::DETACH);
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.lines().rev().take(15).collect::<Vec<_>>();
            eprintln!("containerd's last lines:");
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}
