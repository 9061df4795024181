//! The peer: a Docker engine of the benchmark's own, in a network namespace that takes its bridge and rules along.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// A Docker engine with the image loaded. Dropping it stops it.
pub(crate) struct Docker {
    daemon: Child,
    network: Network,
    socket: PathBuf,
    image: String,
}

impl Docker {
    /// Starts an engine below `folder` and loads `archive` into it as `image`.
    pub(crate) fn start(folder: &Path, archive: &Path, image: &str) -> Result<Self> {
        let root = folder.join("docker");
        let socket = root.join("docker.sock");
        std::fs::create_dir_all(&root)?;
        let log = std::fs::File::create(root.join("log"))?;
        let network = Network::new()?;
        // `ip netns exec` would hide the cgroups.
        let daemon = Command::new("nsenter")
            .args([&format!("--net=/run/netns/{}", network.name), "dockerd"])
            .args(["--storage-driver", "overlay2", "--host"])
            .arg(format!("unix://{}", socket.display()))
            .arg("--data-root")
            .arg(root.join("data"))
            .arg("--exec-root")
            .arg(root.join("exec"))
            .arg("--pidfile")
            .arg(root.join("pid"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("dockerd is not here: apt-get install docker.io")?;
        let docker = Self {
            daemon,
            network,
            socket,
            image: image.to_owned(),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while docker.run(&["version"]).is_err() {
            ensure!(Instant::now() < deadline, "dockerd is not ready");
            std::thread::sleep(Duration::from_millis(100));
        }
        let converted = root.join("image.tar");
        let to = format!("docker-archive:{}:{image}", converted.display());
        let from = format!("oci-archive:{}", archive.display());
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy", &from, &to])
            .output()
            .context("skopeo is not here: apt-get install skopeo")?;
        ensure!(
            copied.status.success(),
            "{}",
            String::from_utf8_lossy(&copied.stderr)
        );
        docker.run(&["load", "--input", &converted.display().to_string()])?;
        Ok(docker)
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("docker")
            .arg("--host")
            .arg(format!("unix://{}", self.socket.display()))
            .args(args)
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// How long `docker run` takes until the function in `code` answers.
    pub(crate) fn first_answer(&self, code: &Path) -> Result<Duration> {
        let code = format!("{}:/usr/local/server/src/function:ro", code.display());
        let start = Instant::now();
        let id = self.run(&[
            "run",
            "--detach",
            "--publish",
            "127.0.0.1:39000:3000",
            "--volume",
            &code,
            "--env",
            "OPEN_RUNTIMES_SECRET=",
            "--env",
            "OPEN_RUNTIMES_ENTRYPOINT=index.js",
            &self.image,
            "node",
            "src/server.js",
        ])?;
        let answered = self.network.poll("http://127.0.0.1:39000/");
        let taken = start.elapsed();
        self.run(&["rm", "--force", &id])?;
        answered.map(|()| taken)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // SIGTERM, so that it unmounts what it mounted.
        if let Ok(pid) = i32::try_from(self.daemon.id())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.daemon.wait();
    }
}

/// A network namespace by name. Dropping it removes it.
struct Network {
    name: String,
}

impl Network {
    fn new() -> Result<Self> {
        let name = format!("opr-bench-{}", std::process::id());
        let network = Self { name };
        network.ip(&["netns", "add", &network.name])?;
        network.ip(&["-n", &network.name, "link", "set", "lo", "up"])?;
        Ok(network)
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        let output = Command::new("ip").args(args).output()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "ip {args:?}: {told}");
        Ok(())
    }

    /// Waits for the first answer of a URL inside, on a thread that is there.
    fn poll(&self, url: &str) -> Result<()> {
        let netns = std::fs::File::open(format!("/run/netns/{}", self.name))?;
        let poll = move || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            super::poll(url, &[])
        };
        std::thread::scope(|scope| scope.spawn(poll).join().expect("it does not panic"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = self.ip(&["netns", "del", &self.name]) {
            eprintln!("{error}");
        }
    }
}
