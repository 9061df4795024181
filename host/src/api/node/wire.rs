//! The node API's documents, version 1: what `opr` and the daemon tell each other, and what `--json` prints.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    adapter::Memory,
    config::Class,
    executor::{
        admission::Reserved,
        instance::InstanceInfo,
        journal::{Line, Stream},
    },
    function::Function,
    id::{ClassName, FunctionName},
};

/// `GET /v1/node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The program's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// What the node calls itself.
    pub hostname: String,
    /// Where functions are served, `address:port`.
    pub gateway: String,
    /// Where the executor API is served, `address:port`.
    pub executor: String,
}

/// The part `function` of `POST /v1/functions`. The part `source` is a tar archive compressed by gzip.
///
/// ```json
/// {"name":"hello","runtime":"node-22","entrypoint":null,"command":null,"variables":{},
///  "cpus":1.0,"memory_mb":512,"timeout_s":15,"class":"function","logging":true}
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The function's name.
    pub name: FunctionName,
    /// Its runtime, as in `node-22`, or `node` for the default version.
    pub runtime: String,
    /// Its file; none takes the runtime's.
    pub entrypoint: Option<String>,
    /// The install command; none takes the runtime's.
    pub command: Option<String>,
    /// Variables of its environment.
    pub variables: BTreeMap<String, String>,
    /// Processors of an instance, in cores; 0 is no limit.
    pub cpus: f64,
    /// Memory of an instance, in megabytes of 1,000,000 bytes; 0 is no limit.
    pub memory_mb: u64,
    /// How long an execution may take. Seconds.
    pub timeout_s: u64,
    /// Class of its instances.
    pub class: ClassName,
    /// Whether what it logs is kept.
    pub logging: bool,
}

/// An element of `GET /v1/classes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassInfo {
    /// Its name.
    pub name: ClassName,
    /// What was asked for.
    pub settings: Class,
    /// What the kernel says, by the files of its cgroup.
    pub kernel: BTreeMap<String, String>,
    /// Its sandboxes.
    pub n_sandboxes: usize,
}

/// The answer to `POST /v1/reload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassChange {
    /// Limits and figures that this kernel lacks, as in `build.memory.high` and `admission.cpu.pressure`.
    pub lacking: Vec<String>,
    /// Settings that hold from the next start on.
    pub restart: Vec<String>,
}

/// `GET /v1/admission`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionInfo {
    /// Memory that is reserved for instances. Bytes.
    pub memory_reserved_bytes: u64,
    /// Memory that may be. Bytes; none is no limit.
    pub memory_budget_bytes: Option<u64>,
    /// Instances that wait for room.
    pub n_waiting: usize,
}

impl From<Reserved> for AdmissionInfo {
    fn from(reserved: Reserved) -> Self {
        Self {
            memory_reserved_bytes: reserved.reserved,
            memory_budget_bytes: reserved.budget,
            n_waiting: reserved.n_waiting,
        }
    }
}

/// One line of the answer to `POST /v1/functions`. The last one is `deployed` or `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum DeployEvent {
    /// The build waits for other builds.
    Queued,
    /// The build runs.
    Started {
        /// Its number.
        build: i64,
    },
    /// The build wrote to its terminal.
    Output {
        /// What. Invalid UTF-8 is replaced.
        text: String,
    },
    /// The artifact is stored, and is being unpacked.
    Stored {
        /// Its digest.
        artifact: String,
        /// Its size.
        size_bytes: u64,
    },
    /// The function serves.
    Deployed {
        /// What serves.
        function: FunctionInfo,
    },
    /// The function was not deployed; the one before goes on.
    Failed {
        /// A stable word.
        #[serde(rename = "type")]
        kind: String,
        /// What happened.
        message: String,
    },
}

/// An element of `GET /v1/functions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionInfo {
    /// Its name.
    pub name: FunctionName,
    /// Its runtime and version.
    pub runtime: String,
    /// Its file.
    pub entrypoint: String,
    /// The path under which the gateway serves it.
    pub path: String,
    /// Names of its variables. Their values may be secrets and are not told.
    pub variables: Vec<String>,
    /// Processors of an instance, in cores; 0 is no limit.
    pub cpus: f64,
    /// Memory of an instance, in megabytes of 1,000,000 bytes; 0 is no limit.
    pub memory_mb: u64,
    /// How long an execution may take. Seconds.
    pub timeout_s: u64,
    /// Class of its instances.
    pub class: ClassName,
    /// Digest of what was built.
    pub artifact: Option<String>,
    /// Its instances.
    pub n_instances: usize,
}

impl FunctionInfo {
    /// What is told of `function`.
    pub fn new(function: &Function, n_instances: usize) -> Self {
        Self {
            name: function.name.clone(),
            runtime: function.runtime.clone(),
            entrypoint: function.entrypoint.clone(),
            path: format!("/{}/", function.name),
            variables: function.variables.keys().cloned().collect(),
            cpus: function.limits.cpus,
            memory_mb: function.limits.memory_bytes / 1_000_000,
            timeout_s: function.timeout.as_secs(),
            class: function.class.clone(),
            artifact: function.artifact.as_ref().map(ToString::to_string),
            n_instances,
        }
    }
}

/// An element of `GET /v1/instances`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceEntry {
    /// Its name.
    pub id: String,
    /// The function that it serves; none where a client of the executor API brought it.
    pub function: Option<FunctionName>,
    /// Its image.
    pub image: String,
    /// Class of its sandbox.
    pub class: ClassName,
    /// `pending`, `running` (its port does not accept yet) or `ready`.
    pub state: String,
    /// Executions in it or waiting for it.
    pub n_executions: usize,
    /// All executions since it was made.
    pub n_executions_total: u64,
    /// How long the start took, for which the first of them waited. Milliseconds; none while it starts.
    pub start_ms: Option<u64>,
    /// Processor time that it has used. Seconds; none where that is not known, as for all of the following.
    pub cpu_s: Option<f64>,
    /// Memory that it uses. Bytes.
    pub memory_bytes: Option<u64>,
    /// What of it there may be. Bytes; none is no limit.
    pub memory_max_bytes: Option<u64>,
    /// Share of the last ten seconds in which it waited for memory. Percent; cgroup version 2 only.
    pub memory_pressure: Option<f64>,
    /// When its creation began, as in `2026-01-02T03:04:05Z`.
    pub created: String,
    /// When it was last used.
    pub updated: String,
}

impl InstanceEntry {
    /// What is told of an instance that uses so much.
    pub fn new(info: InstanceInfo, (cpu, memory): (Option<Duration>, Option<Memory>)) -> Self {
        let state = match (info.is_listening, info.start_duration) {
            (true, _) => "ready",
            (false, Some(_)) => "running",
            (false, None) => "pending",
        };
        Self {
            id: info.id.to_string(),
            function: info.function,
            image: info.image,
            class: info.class,
            state: state.into(),
            n_executions: info.n_executions,
            n_executions_total: info.n_admitted,
            start_ms: info
                .start_duration
                .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            cpu_s: cpu.map(|used| used.as_secs_f64()),
            memory_bytes: memory.map(|memory| memory.used),
            memory_max_bytes: memory.and_then(|memory| memory.limit),
            memory_pressure: memory.and_then(|memory| memory.pressure),
            created: timestamp(info.created),
            updated: timestamp(info.updated),
        }
    }
}

/// One line of `GET /v1/functions/{name}/logs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When the host read it.
    pub time: String,
    /// Where it comes from.
    pub stream: Stream,
    /// Without its line end.
    pub text: String,
}

impl From<&Line> for LogEntry {
    fn from(line: &Line) -> Self {
        Self {
            time: timestamp(line.time),
            stream: line.stream,
            text: line.text.clone(),
        }
    }
}

/// What every failure answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// A stable word.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened.
    pub message: String,
    /// The HTTP status.
    pub code: u16,
}

/// As in RFC 3339, in UTC.
fn timestamp(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .expect("a year of four digits")
}
