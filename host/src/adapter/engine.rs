//! The containerd behind the adapter: the node's own, or one that the operator runs.
//!
//! The node's own is kept alive by one process, which holds the lock of `<run_dir>/containerd/keeper`: `opr containerd`
//! where that runs, the daemon otherwise. It outlives its keeper: a later one finds it by its socket and pid file.

use std::{
    fs,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use opr_images::mount::is_in_user_namespace;
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal},
};
use tokio::{io::unix::AsyncFd, net::UnixStream, process::Command, task::JoinHandle, time};
use tokio_util::sync::CancellationToken;

use super::EngineError;
use crate::config::Config;

/// How long a start of containerd may take before its socket answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long shims may take to end, and the pause between two looks.
const SHIMS_TIMEOUT: Duration = Duration::from_secs(10);
const SHIMS_PAUSE: Duration = Duration::from_millis(20);
const POLL: Duration = Duration::from_millis(10);
const TAKE_TRIES: u32 = 50;
const TAKE_PAUSE: Duration = Duration::from_millis(20);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// containerd, found or started.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) socket: PathBuf,
    own: Option<Own>,
    /// The work that keeps it alive, or waits until nobody else does.
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// The right to start the node's own containerd, of one process at a time. Dropping it gives it back.
#[derive(Debug)]
struct Keeper {
    _lock: fs::File,
}

/// Where the node's own containerd keeps what it needs.
#[derive(Debug, Clone)]
struct Own {
    program: PathBuf,
    shim_dir: Option<PathBuf>,
    dir: PathBuf,
    root: PathBuf,
    socket: PathBuf,
}

impl Engine {
    /// Connects to containerd, after starting the node's own where it does not run.
    pub(super) async fn start(config: &Config) -> Result<Self, EngineError> {
        let socket = config.containerd_socket();
        if config.containerd.address.is_some() {
            answers(&socket)
                .await
                .map_err(|error| unreachable(&socket, error))?;
            return Ok(Self {
                socket,
                own: None,
                keeper: Mutex::default(),
            });
        }
        let own = Own::new(config);
        let failed = |error| unreachable(&socket, error);
        let keeper = match Keeper::take(&own.dir).map_err(failed)? {
            Some(right) => {
                let process = own.find_or_start().await.map_err(failed)?;
                tokio::spawn(own.clone().keep(process, right))
            }
            None => {
                answers_soon(&socket).await.map_err(failed)?;
                tokio::spawn(own.clone().keep_next())
            }
        };
        Ok(Self {
            socket,
            own: Some(own),
            keeper: Mutex::new(Some(keeper)),
        })
    }

    /// Ends the node's own containerd. Does nothing where the operator runs it, or another process keeps it.
    pub(super) async fn stop(&self) -> io::Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        let keeper = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            keeper.abort();
            let _ = keeper.await;
        }
        match Keeper::take_soon(&own.dir).await? {
            Some(_right) => own.stop().await,
            None => Ok(()),
        }
    }

    /// Waits for the shims of the node's own containerd, which outlive their last container, and it, by a moment.
    pub(super) async fn wait_for_shims(&self) {
        let Some(own) = &self.own else { return };
        let deadline = time::Instant::now() + SHIMS_TIMEOUT;
        while own.has_shims() {
            if time::Instant::now() > deadline {
                return tracing::warn!("shims go on without containers");
            }
            time::sleep(SHIMS_PAUSE).await;
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(keeper) = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            keeper.abort();
        }
    }
}

/// Keeps the node's own containerd alive until `stop`, then ends it. Calls `ready` once it answers.
///
/// # Errors
/// Another process keeps it, or it cannot be started.
pub async fn keep(
    config: &Config,
    ready: impl FnOnce(),
    stop: CancellationToken,
) -> Result<(), EngineError> {
    let own = Own::new(config);
    let failed = |error| unreachable(&own.socket, error);
    let right = Keeper::take_soon(&own.dir).await.map_err(failed)?;
    let right =
        right.ok_or_else(|| unreachable(&own.socket, "another process keeps it already"))?;
    let process = own.find_or_start().await.map_err(failed)?;
    ready();
    tokio::select! {
        () = own.clone().keep(process, right) => {}
        () = stop.cancelled() => {}
    }
    own.stop().await.map_err(failed)
}

/// The process that keeps the node's own containerd.
pub fn keeper(config: &Config) -> Option<i32> {
    let file = fs::File::open(Keeper::file(&Own::new(config).dir)).ok()?;
    // The lock of one that has ended is free.
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    io::read_to_string(file).ok()?.trim().parse().ok()
}

impl Keeper {
    /// Takes the right, where no other process has it.
    fn take(dir: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(dir)?;
        let mut lock = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(Self::file(dir))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        lock.set_len(0)?;
        write!(lock, "{}", getpid().as_raw_nonzero())?;
        Ok(Some(Self { _lock: lock }))
    }

    /// As [`Keeper::take`], for a while: a process that ends may still have it.
    async fn take_soon(dir: &Path) -> io::Result<Option<Self>> {
        for _ in 0..TAKE_TRIES {
            if let Some(right) = Self::take(dir)? {
                return Ok(Some(right));
            }
            time::sleep(TAKE_PAUSE).await;
        }
        Ok(None)
    }

    fn file(dir: &Path) -> PathBuf {
        dir.join("keeper")
    }
}

impl Own {
    fn new(config: &Config) -> Self {
        Self {
            program: config.containerd.program.clone(),
            shim_dir: config.shim_dir(),
            dir: config.run_dir.join("containerd"),
            root: config.state_dir.join("containerd"),
            socket: config.containerd_socket(),
        }
    }

    async fn find_or_start(&self) -> io::Result<OwnedFd> {
        let found = self.find();
        if let Some(process) = found
            && answers(&self.socket).await.is_ok()
        {
            return Ok(process);
        }
        self.spawn().await
    }

    /// The process of the pid file, where it is this node's containerd.
    fn find(&self) -> Option<OwnedFd> {
        let pid: i32 = fs::read_to_string(self.pid_file())
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
        // Read after the descriptor exists, so that the number cannot have become another's.
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let config = self.config_file();
        let is_own = command
            .split(|byte| *byte == 0)
            .any(|arg| arg == config.as_os_str().as_encoded_bytes());
        is_own.then_some(process)
    }

    /// Whether a process is a shim that this containerd has started.
    fn has_shims(&self) -> bool {
        let is_shim = |command: &[u8]| {
            let words: Vec<_> = command.split(|byte| *byte == 0).collect();
            let socket = self.socket.as_os_str().as_encoded_bytes();
            words.windows(2).any(|two| two == [b"-address", socket])
        };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut commands = processes.map(|process| fs::read(process.path().join("cmdline")));
        commands.any(|command| command.is_ok_and(|command| is_shim(&command)))
    }

    async fn spawn(&self) -> io::Result<OwnedFd> {
        self.write_config()?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("containerd.log"))?;
        // A process group of its own: what a terminal sends to the daemon does not reach it.
        let mut child = Command::new(&self.program)
            .arg("--config")
            .arg(self.config_file())
            .env("PATH", self.path()?)
            // Ready is what its keeper says.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let ended = || io::Error::other("containerd ended at once, see containerd.log");
        let pid = child.id().ok_or_else(ended)?;
        fs::write(self.pid_file(), pid.to_string())?;
        tokio::select! {
            answered = answers_soon(&self.socket) => answered?,
            _ = child.wait() => return Err(ended()),
        }
        let process = self.find().ok_or_else(ended)?;
        // Waited for, so that it does not stay as a zombie of this daemon.
        tokio::spawn(async move { child.wait().await });
        Ok(process)
    }

    /// Keeps it once nobody else does.
    async fn keep_next(self) {
        loop {
            time::sleep(BACKOFF.0).await;
            let Ok(Some(right)) = Keeper::take(&self.dir) else {
                continue;
            };
            match self.find_or_start().await {
                Ok(process) => return self.keep(process, right).await,
                // The next round tries again.
                Err(error) => tracing::error!(%error, "containerd was not started again"),
            }
        }
    }

    async fn stop(&self) -> io::Result<()> {
        let Some(process) = self.find() else {
            return Ok(());
        };
        pidfd_send_signal(&process, Signal::TERM)?;
        let process = watched(process)?;
        if time::timeout(STOP_TIMEOUT, process.readable())
            .await
            .is_err()
        {
            pidfd_send_signal(process.get_ref(), Signal::KILL)?;
            let _ = process.readable().await?;
        }
        fs::remove_file(self.pid_file())
    }

    /// Starts containerd again whenever it ends, sooner after a long life than after a short one.
    async fn keep(self, mut process: OwnedFd, _right: Keeper) {
        let mut pause = BACKOFF.0;
        loop {
            let born = time::Instant::now();
            if let Ok(process) = watched(process) {
                let _ = process
                    .readable()
                    .await
                    .map(|mut ready| ready.retain_ready());
            }
            tracing::error!("containerd ended");
            if born.elapsed() > BACKOFF.1 {
                pause = BACKOFF.0;
            }
            process = loop {
                time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
                match self.spawn().await {
                    Ok(process) => break process,
                    Err(error) => tracing::error!(%error, "containerd was not started again"),
                }
            };
            tracing::info!("containerd was started again");
        }
    }

    /// Where containerd looks for shims and other programs.
    fn path(&self) -> io::Result<std::ffi::OsString> {
        let own = std::env::var_os("PATH").unwrap_or_default();
        let all = self
            .shim_dir
            .iter()
            .cloned()
            .chain(std::env::split_paths(&own));
        std::env::join_paths(all).map_err(io::Error::other)
    }

    /// Version 2 is what containerd 1.6 to 2.x read.
    fn write_config(&self) -> io::Result<()> {
        for dir in [&self.dir, &self.root] {
            fs::create_dir_all(dir)?;
        }
        let quoted =
            |path: &Path| toml::Value::from(path.to_string_lossy().into_owned()).to_string();
        let text = format!(
            "version = 2\nroot = {root}\nstate = {state}\noom_score = {oom_score}\n\
             disabled_plugins = [{disabled}]\n\n[grpc]\naddress = {socket}\n",
            root = quoted(&self.root),
            state = quoted(&self.dir.join("state")),
            socket = quoted(&self.socket),
            // Without rights it is the service manager's to set.
            oom_score = if is_in_user_namespace() { 0 } else { -999 },
            disabled = DISABLED.map(|name| format!("{name:?}")).join(", "),
        );
        fs::write(self.config_file(), text)
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("containerd.pid")
    }
}

/// Kubernetes' door, snapshotters that need what nodes rarely have, and telemetry that nobody collects.
const DISABLED: [&str; 8] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
];

async fn answers(socket: &Path) -> io::Result<()> {
    UnixStream::connect(socket).await.map(drop)
}

async fn answers_soon(socket: &Path) -> io::Result<()> {
    let answered = async {
        while answers(socket).await.is_err() {
            time::sleep(POLL).await;
        }
    };
    Ok(time::timeout(START_TIMEOUT, answered).await?)
}

pub(super) fn unreachable(
    socket: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> EngineError {
    EngineError::Unreachable {
        socket: socket.to_owned(),
        source: source.into(),
    }
}

#[expect(
    deprecated,
    reason = "an OwnedFd names one open file for as long as it is watched"
)]
fn watched(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(process)
}
