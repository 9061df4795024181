//! The node's settings: one `Config`, made before any port is bound, from `opr.toml` and the environment.
//!
//! A value in the environment wins over the file, the file over the default. A wrong value stops the start.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::id::ClassName;
use class::default_classes;

pub mod env;

mod admission;
mod class;
mod device;

pub use admission::{Admission, Budget, Percent, Thresholds};
pub use class::{Class, Classes, IoMax, OWN_RUNTIME, Outbound, Root};
pub use device::{Device, DsnError, S3};

/// The registry of images whose reference names none.
const DOCKER_HUB: &str = "docker.io";

/// All settings of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What this host calls itself (`H` in container names). Default: the kernel's node name.
    pub hostname: String,
    /// What lasts: images, functions, artifacts. Default `/var/lib/opr`.
    pub state_dir: PathBuf,
    /// What a reboot ends: sockets, namespaces, mounts. Default `/run/opr`.
    pub run_dir: PathBuf,
    /// Where `http://node/<function>/` is served. Default `0.0.0.0:8080`.
    pub gateway_listen: SocketAddr,
    /// Where the executor API and `/metrics` are served. Default `0.0.0.0:9900`.
    pub executor_listen: SocketAddr,
    /// How long a stop waits for executions in flight. Milliseconds; default 10,000.
    pub drain_timeout_ms: u64,
    /// Which log lines are written, as in `info,opr_host=debug`. Default `info`.
    pub log: String,
    /// The container engine.
    pub containerd: Containerd,
    /// The executor.
    pub executor: Executor,
    /// When a new instance may be made.
    pub admission: Admission,
    /// Where sources and artifacts are that clients of the executor API name.
    pub storage: Storage,
    /// What is pulled at the start.
    pub pull: Pull,
    /// Logins by registry, as in `[registry."registry.example.com"]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub registry: BTreeMap<String, Login>,
    /// Sandboxes made ahead, their ids and their network.
    pub sandbox: Sandboxes,
    /// The classes of sandboxes by name; `function` and `build` always exist.
    pub class: BTreeMap<ClassName, Class>,
}

/// The container engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Containerd {
    /// Socket of a containerd to use. Default: none, the node runs its own under `run_dir`.
    pub address: Option<PathBuf>,
    /// The program of the node's own containerd, looked up in `PATH`.
    pub program: PathBuf,
    /// containerd's namespace for all that this node makes.
    pub namespace: String,
    /// Where the shims are that the node's own containerd starts, before those of `PATH`.
    /// Default: the folder of the running program.
    pub shim_dir: Option<PathBuf>,
    /// containerd's snapshotter; its layers must be directories for an overlay mount.
    pub snapshotter: String,
}

/// The executor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Executor {
    /// The key that callers of the executor API show. Empty: every authenticated route answers 401.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub secret: String,
    /// Whether error answers carry details.
    pub is_development: bool,
    /// Protocol versions that the API accepts.
    pub runtime_versions: Vec<String>,
    /// Idle time after which an instance is reaped. Seconds; default 60.
    pub inactive_threshold_s: u64,
    /// Time between two looks for idle instances. Seconds; default 10.
    pub maintenance_interval_s: u64,
    /// Connection attempts for one execution, at least. Default 5.
    pub retry_attempts: u32,
    /// Pause between them. Milliseconds; default 500.
    pub retry_delay_ms: u64,
    /// Executions at once in one instance; more wait. Default 256.
    pub concurrency: usize,
    /// Executions that may wait for one instance; more are refused. Default 4,096.
    pub queue: usize,
    /// Builds of clients at once; more wait. Default 8.
    pub builds: usize,
    /// Builds of clients that may wait; more are refused. Default 256.
    pub build_queue: usize,
    /// Bodies and answers that calls of the executor API hold together. MiB; default 1,024; more is refused.
    pub buffer_mib: usize,
    /// The `version` field of errors.
    pub version: String,
    /// Whether list and get show each runtime's key.
    pub show_keys: bool,
}

/// Where sources and artifacts are that clients of the executor API name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// The device of sources and results, as a DSN: `s3://KEY:SECRET@HOST/BUCKET?region=REGION`.
    /// Default: this machine's file system.
    #[serde(rename = "dsn")]
    pub device: Device,
    /// The device of builds' caches. Default: the same.
    #[serde(rename = "build_cache_dsn", skip_serializing_if = "Option::is_none")]
    pub build_cache: Option<Device>,
}

impl Storage {
    /// The device of builds' caches.
    pub fn build_cache_device(&self) -> &Device {
        self.build_cache.as_ref().unwrap_or(&self.device)
    }
}

/// What is pulled at the start, in the background.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pull {
    /// Images.
    pub images: Vec<String>,
    /// The images of these runtimes of the catalogue, as in `node-22`.
    pub runtimes: Vec<String>,
}

/// Who the node is to a registry.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The password, or a token.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Sandboxes made ahead, their ids and their network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandboxes {
    /// Namespaces kept ready for each kind of outbound network in use. Default 8.
    pub pool: usize,
    /// Sandboxes at once, at most: each has 65,536 subordinate ids of its own. Default 4,096.
    pub max: u32,
    /// The first subordinate id. Default 1,879,048,192 (0x70000000), as systemd's range for containers ends below it.
    pub first_id: u32,
    /// Network of `nat` sandboxes: a bridge of this name.
    pub bridge: String,
    /// Addresses of `nat` sandboxes, as `address/prefix`. Default `10.88.0.0/16`.
    pub subnet: String,
    /// Folder of the CNI plugins. Default: the first of `/usr/lib/cni` and `/opt/cni/bin` that exists.
    pub cni_dir: Option<PathBuf>,
}

/// Limits of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Processors, in cores; 0 is no limit.
    pub cpus: f64,
    /// Memory in bytes; 0 is no limit.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpus: 1.0,
            memory_bytes: 512_000_000,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hostname: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            state_dir: "/var/lib/opr".into(),
            run_dir: "/run/opr".into(),
            gateway_listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            executor_listen: SocketAddr::from(([0, 0, 0, 0], 9900)),
            drain_timeout_ms: 10_000,
            log: "info".into(),
            containerd: Containerd::default(),
            executor: Executor::default(),
            admission: Admission::default(),
            storage: Storage::default(),
            pull: Pull::default(),
            registry: BTreeMap::new(),
            sandbox: Sandboxes::default(),
            class: default_classes(),
        }
    }
}

impl Default for Containerd {
    fn default() -> Self {
        Self {
            address: None,
            program: "containerd".into(),
            namespace: "opr".into(),
            shim_dir: None,
            snapshotter: "overlayfs".into(),
        }
    }
}

impl Default for Executor {
    fn default() -> Self {
        Self {
            secret: String::new(),
            is_development: false,
            runtime_versions: vec!["v5".into()],
            inactive_threshold_s: 60,
            maintenance_interval_s: 10,
            retry_attempts: 5,
            retry_delay_ms: 500,
            concurrency: 256,
            queue: 4096,
            builds: 8,
            build_queue: 256,
            buffer_mib: 1024,
            version: env!("CARGO_PKG_VERSION").into(),
            show_keys: false,
        }
    }
}

impl Default for Sandboxes {
    fn default() -> Self {
        Self {
            pool: 8,
            max: 4096,
            first_id: 0x7000_0000,
            bridge: "opr0".into(),
            subnet: "10.88.0.0/16".into(),
            cni_dir: None,
        }
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read settings from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no settings file. The cause says what is accepted.
    #[error("cannot understand {path}, line {line}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// Why; without the line itself, which may hold a secret.
        source: Box<toml::de::Error>,
    },
    /// A DSN names no storage device.
    #[error("{name} names no storage device")]
    Dsn {
        /// The setting.
        name: String,
        /// Why; without the secret.
        source: DsnError,
    },
    /// A value is outside of what is accepted.
    #[error("{name} is {value:?}, but must be {accepted}")]
    Value {
        /// The setting.
        name: String,
        /// Its value.
        value: String,
        /// What would do.
        accepted: &'static str,
    },
}

impl Config {
    /// The settings of `file` and of its drop-ins (the defaults without one), changed by what `var` knows of the
    /// environment. Drop-ins of `opr.toml` are the files `opr.toml.d/*.toml` in the order of their names; a later value
    /// wins.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(
        file: Option<&Path>,
        var: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut table = toml::Table::try_from(Self::default()).expect("settings are plain tables");
        for path in files(file)? {
            merge(&mut table, read(&path)?);
        }
        // Each file was understood by itself, so all of them together are.
        let mut config: Self = table
            .try_into()
            .expect("settings that were read one by one");
        env::apply(&mut config, var)?;
        config.check()?;
        Ok(config)
    }

    /// Whether there are settings to read: `file` or a folder of its drop-ins.
    pub fn exists(file: &Path) -> bool {
        file.exists() || drop_ins(file).exists()
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |name: &str, value: String, accepted| {
            Err(ConfigError::Value {
                name: name.to_owned(),
                value,
                accepted,
            })
        };
        if self.executor.concurrency == 0 {
            return wrong("executor.concurrency", "0".into(), "1 or more");
        }
        if self.executor.builds == 0 {
            return wrong("executor.builds", "0".into(), "1 or more");
        }
        for (name, dir) in [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)] {
            if !dir.is_absolute() {
                return wrong(name, dir.display().to_string(), "an absolute path");
            }
        }
        Ok(())
    }

    /// Where the shims of the node's own containerd are, before those of `PATH`.
    pub fn shim_dir(&self) -> Option<PathBuf> {
        let own = || Some(std::env::current_exe().ok()?.parent()?.to_owned());
        self.containerd.shim_dir.clone().or_else(own)
    }

    /// The socket of the containerd to use.
    pub fn containerd_socket(&self) -> PathBuf {
        match &self.containerd.address {
            Some(address) => address.clone(),
            None => self.run_dir.join("containerd/containerd.sock"),
        }
    }

    /// The socket on which the daemon answers its own command line.
    pub fn node_socket(&self) -> PathBuf {
        self.run_dir.join("opr.sock")
    }

    /// How long a stop waits for executions in flight.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }

    /// These settings as text, with secrets masked.
    pub fn masked(&self) -> String {
        let mut shown = self.clone();
        if !shown.executor.secret.is_empty() {
            shown.executor.secret = "***".into();
        }
        for login in shown.registry.values_mut() {
            login.password = "***".into();
        }
        // As a table first: a structure's names are not quoted in the headers of its tables, as of toml 0.9.12.
        let shown = toml::Table::try_from(&shown).expect("settings are plain tables");
        toml::to_string(&shown).expect("a table")
    }
}

/// A file, and what is dropped in beside it.
fn files(file: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    let Some(file) = file else {
        return Ok(Vec::new());
    };
    let folder = drop_ins(file);
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![file.into()]),
        entries => entries.and_then(|entries| entries.collect::<Result<Vec<_>, _>>()),
    };
    let entries = entries.map_err(|source| ConfigError::Read {
        path: folder,
        source,
    })?;
    let paths = entries.into_iter().map(|entry| entry.path());
    // Editors keep hidden files beside those that they write.
    let is_meant = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".toml") && !name.starts_with('.')
    };
    let mut dropped: Vec<_> = paths.filter(is_meant).collect();
    dropped.sort();
    // They may be all that there is.
    if dropped.is_empty() || file.exists() {
        dropped.insert(0, file.into());
    }
    Ok(dropped)
}

/// The folder of what is dropped in beside a file.
fn drop_ins(file: &Path) -> PathBuf {
    let mut folder = file.as_os_str().to_owned();
    folder.push(".d");
    folder.into()
}

/// What a file says, if each value in it is accepted.
fn read(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let wrong = |mut source: toml::de::Error| {
        let start = source.span().map_or(0, |span| span.start);
        source.set_input(None);
        ConfigError::Parse {
            path: path.to_owned(),
            line: text[..start].matches('\n').count() + 1,
            source: source.into(),
        }
    };
    toml::from_str::<Config>(&text).map_err(wrong)?;
    toml::from_str(&text).map_err(wrong)
}

/// Tables are joined, all else is replaced.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests;
