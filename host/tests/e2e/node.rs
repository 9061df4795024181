//! A node of a test's own: real containerd, real containers, real HTTP, in folders that end with it.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use flate2::write::GzEncoder;

pub(crate) use image::runtime_archive;
use number::Number;

#[path = "../support/image.rs"]
pub(crate) mod image;
#[path = "../support/number.rs"]
mod number;

/// The key of the test nodes' executor API.
pub(crate) const SECRET: &str = "executor-secret-key";

/// A running node. Dropping it stops the node with all that it made, and checks that nothing is left.
pub(crate) struct Node {
    number: Number,
    dir: tempfile::TempDir,
    has_own_disk: bool,
    daemon: Option<Child>,
    gateway: u16,
    executor: u16,
}

/// An HTTP answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }
}

/// What the machine holds of one node: other nodes may come and go beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traces {
    mounts: usize,
    cgroups: usize,
    links: usize,
    loops: usize,
    rules: usize,
    processes: usize,
}

impl Traces {
    /// All that a node leaves behind.
    const NONE: Self = Self {
        mounts: 0,
        cgroups: 0,
        links: 0,
        loops: 0,
        rules: 0,
        processes: 0,
    };

    fn of(node: &Node) -> Self {
        let dir = node.dir().display().to_string();
        let bridge = node.number.bridge();
        let lines = |text: &str, part: &str| text.lines().filter(|l| l.contains(part)).count();
        let run = |program: &str| {
            let output = Command::new(program).output();
            output.map_or_else(
                |_| String::new(),
                |o| String::from_utf8_lossy(&o.stdout).into(),
            )
        };
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let commands = fs::read_dir("/proc").into_iter().flatten().flatten();
        let commands = commands.map(|entry| fs::read(entry.path().join("cmdline")));
        let is_its = |command: &[u8]| {
            command
                .windows(dir.len())
                .any(|part| part == dir.as_bytes())
        };
        let state = format!("{dir}/state ");
        let loops = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let files = loops.map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")));
        Self {
            loops: files
                .filter(|file| file.as_deref().is_ok_and(|f| f.starts_with(&dir)))
                .count(),
            mounts: lines(&mounts, &dir) - lines(&mounts, &state),
            cgroups: folders(Path::new("/sys/fs/cgroup"), &node.number.name()),
            links: entries(Path::new(&format!("/sys/class/net/{bridge}/brif")))
                + usize::from(Path::new(&format!("/sys/class/net/{bridge}")).exists()),
            rules: lines(&run("iptables-save"), &bridge) + lines(&run("ip6tables-save"), &bridge),
            processes: commands.filter(|c| c.as_deref().is_ok_and(is_its)).count(),
        }
    }
}

/// What a running node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    traces: Traces,
    descriptors: usize,
    threads: usize,
    sandboxes: usize,
    slots: usize,
    sources: usize,
    staged: usize,
    disks: usize,
}

/// Folders below `folder` whose path has `name` in it.
fn folders(folder: &Path, name: &str) -> usize {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let found = entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path());
    found
        .map(|path| {
            let is_named = path.to_string_lossy().contains(name);
            usize::from(is_named) + folders(&path, name)
        })
        .sum()
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

impl Node {
    /// Starts a node without images.
    pub(crate) fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// As [`Node::start`], with more lines in its settings file.
    pub(crate) fn start_with(settings: &str) -> Result<Self> {
        let mut node = Self::prepare(settings, 64)?;
        node.spawn()?;
        Ok(node)
    }

    /// As [`Node::start`], with a state folder that holds no more than `mib` MiB.
    pub(crate) fn start_on_small_disk(mib: u32) -> Result<Self> {
        let mut node = Self::prepare("", 64)?;
        let state = node.dir().join("state");
        fs::create_dir(&state)?;
        let options = std::ffi::CString::new(format!("size={mib}m,mode=0711"))?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("opr-test", &state, "tmpfs", flags, options.as_c_str())?;
        node.has_own_disk = true;
        node.spawn()?;
        Ok(node)
    }

    /// As [`Node::start`], for more sandboxes than other nodes under test would leave it ids for.
    pub(crate) fn start_large() -> Result<Self> {
        let mut node = Self::prepare("", 128)?;
        node.spawn()?;
        Ok(node)
    }

    fn prepare(settings: &str, max: u32) -> Result<Self> {
        let number = Number::claim();
        let dir = tempfile::Builder::new()
            .prefix("opr-e2e-")
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir()?;
        let (gateway, executor) = (free_port()?, free_port()?);
        let text = format!(
            "state_dir = '{dir}/state'\nrun_dir = '{dir}/run'\n\
             gateway_listen = '127.0.0.1:{gateway}'\nexecutor_listen = '127.0.0.1:{executor}'\n\
             hostname = 'executor'\n\
             {settings}\n\
             [containerd]\nnamespace = '{namespace}'\n\
             [sandbox]\nbridge = '{bridge}'\nsubnet = '{subnet}'\nfirst_id = {first_id}\nmax = {max}\npool = 4\n",
            dir = dir.path().display(),
            namespace = number.name(),
            bridge = number.bridge(),
            subnet = number.subnet(),
            first_id = number.first_id(),
        );
        fs::write(dir.path().join("opr.toml"), text)?;
        Ok(Self {
            number,
            dir,
            has_own_disk: false,
            daemon: None,
            gateway,
            executor,
        })
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let daemon = self
            .command("serve")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the daemon")?;
        self.daemon = Some(daemon);
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let health = format!("http://127.0.0.1:{}/v1/health", self.executor);
        while Instant::now() < deadline {
            if request("GET", &health, &[], &[]).is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            let exited = self
                .daemon
                .as_mut()
                .and_then(|daemon| daemon.try_wait().ok().flatten());
            ensure!(exited.is_none(), "the daemon ended: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the node is not ready after 60 s: {}", self.log())
    }

    /// `opr SUBCOMMAND` against this node.
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_opr"));
        command
            .arg("--config")
            .arg(self.dir.path().join("opr.toml"))
            .arg(subcommand)
            .env("OPR_EXECUTOR_SECRET", SECRET)
            .env("OPR_EXECUTOR_ENV", "development");
        command
    }

    /// Runs `opr SUBCOMMAND ARGS`; fails with its output where it fails.
    pub(crate) fn opr(&self, subcommand: &str, args: &[&str]) -> Result<String> {
        let output = self.command(subcommand).args(args).output()?;
        ensure!(
            output.status.success(),
            "opr {subcommand} {args:?}: {}\n{}",
            told(&output),
            self.log()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Puts the node runtime's image into this node.
    pub(crate) fn import_runtime(&self, runtime: &str) -> Result<()> {
        let archive = runtime_archive(runtime)?;
        self.opr("images", &["import", &archive.display().to_string()])
            .map(drop)
    }

    /// Deploys a folder.
    pub(crate) fn deploy(&self, folder: &Path, name: &str, args: &[&str]) -> Result<String> {
        let folder = folder.display().to_string();
        self.opr("deploy", &[&[&folder, "--name", name], args].concat())
    }

    /// An address of the gateway.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.gateway)
    }

    /// One request to the gateway.
    pub(crate) fn get(&self, path: &str) -> Result<Answer> {
        self.send("GET", path, &[], &[])
    }

    /// One request to the gateway.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        request(method, &self.url(path), headers, body)
    }

    /// One request to the executor API, with its key.
    pub(crate) fn api(&self, method: &str, path: &str, body: &serde_json::Value) -> Result<Answer> {
        let headers = [
            ("authorization", &*format!("Bearer {SECRET}")),
            ("content-type", "application/json"),
            ("accept", "application/json"),
        ];
        let body = body.to_string();
        request(method, &self.api_url(path), &headers, body.as_bytes())
    }

    /// An address of the executor API.
    pub(crate) fn api_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.executor)
    }

    /// Packs a node function of this code as the archive that clients of the executor API name as `source`.
    pub(crate) fn archive(&self, code: &str) -> Result<String> {
        let path = self.dir().join("code.tar.gz");
        let gzip = GzEncoder::new(fs::File::create(&path)?, flate2::Compression::fast());
        let mut archive = tar::Builder::new(gzip);
        let metadata = "OPEN_RUNTIMES_ENTRYPOINT=index.js\n";
        for (name, text) in [("./index.js", code), ("./.open-runtimes", metadata)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, text.as_bytes())?;
        }
        archive.into_inner()?.finish()?;
        Ok(path.display().to_string())
    }

    /// Packs one of the folders in `functions/` likewise.
    pub(crate) fn pack(&self, function: &str) -> Result<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/functions");
        let path = self.dir().join(format!("{function}.tar.gz"));
        let gzip = GzEncoder::new(fs::File::create(&path)?, flate2::Compression::fast());
        let mut archive = tar::Builder::new(gzip);
        archive.append_dir_all(".", folder.join(function))?;
        let metadata = "OPEN_RUNTIMES_ENTRYPOINT=index.js\n";
        let mut header = tar::Header::new_gnu();
        header.set_size(metadata.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "./.open-runtimes", metadata.as_bytes())?;
        archive.into_inner()?.finish()?;
        Ok(path.display().to_string())
    }

    /// How many instances there are.
    pub(crate) fn instances(&self) -> Result<usize> {
        let listed: Vec<serde_json::Value> = serde_json::from_str(&self.opr("ps", &["--json"])?)?;
        Ok(listed.len())
    }

    /// What the node holds, once it has held that for longer than its idle threads live, which is 10 s.
    pub(crate) fn settled(&self) -> Result<Held> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let (mut held, mut since) = (self.held()?, Instant::now());
        while since.elapsed() < Duration::from_secs(12) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_secs(1));
            let now = self.held()?;
            if now != held {
                (held, since) = (now, Instant::now());
            }
        }
        Ok(held)
    }

    /// The daemon's memory at its highest. MiB.
    pub(crate) fn peak_memory_mib(&self) -> Result<u64> {
        let pid = self.daemon.as_ref().context("the daemon runs")?.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|text| text.trim().strip_suffix(" kB"));
        Ok(kib.context("a peak")?.parse::<u64>()? / 1024)
    }

    fn held(&self) -> Result<Held> {
        let pid = self.daemon.as_ref().context("the daemon runs")?.id();
        let of = |name: &str| entries(Path::new(&format!("/proc/{pid}/{name}")));
        let run = self.dir().join("run");
        Ok(Held {
            traces: Traces::of(self),
            descriptors: of("fd"),
            threads: of("task"),
            sandboxes: entries(&run.join("sandboxes")),
            slots: entries(&run.join("slots")),
            sources: entries(&self.dir().join("state/sources")),
            staged: entries(&self.dir().join("state/staging")),
            disks: entries(&self.dir().join("state/sandboxes")),
        })
    }

    /// Ends the daemon at once, as a crash does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("the daemon runs")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Ends the daemon as systemd does.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("the daemon runs")?;
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = daemon.wait()?;
        ensure!(
            status.success(),
            "the daemon ended with {status}: {}",
            self.log()
        );
        Ok(())
    }

    /// The folder of this node.
    /// containerd's namespace, and the first part of its cgroups' paths.
    pub(crate) fn namespace(&self) -> String {
        self.number.name()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// The daemon's log, its last part.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Stops the node, and returns what is left of it.
    pub(crate) fn stop(&mut self) -> Traces {
        let down = self.command("down").output();
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        let told = down.map_or_else(|error| error.to_string(), |output| told(&output));
        eprintln!("opr down: {told}");
        if self.has_own_disk {
            let flags = rustix::mount::UnmountFlags::DETACH;
            rustix::mount::unmount(self.dir().join("state"), flags).expect("it was mounted");
        }
        Traces::of(self)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        if self.daemon.is_some() || self.has_own_disk {
            let left = self.stop();
            if !std::thread::panicking() {
                assert_eq!(
                    left,
                    Traces::NONE,
                    "the node left something\n{}",
                    self.log()
                );
            }
        }
    }
}

fn told(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{} {} {}",
        output.status,
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// One HTTP request; every status is an answer.
pub(crate) fn request(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .timeout_global(Some(Duration::from_secs(120)))
        .max_redirects(0)
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = agent.run(request.body(body)?)?;
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    body.as_reader().read_to_end(&mut bytes)?;
    let headers = parts
        .headers
        .iter()
        .map(|(key, value)| {
            (
                key.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    Ok(Answer {
        status: parts.status.as_u16(),
        headers,
        body: bytes,
    })
}
