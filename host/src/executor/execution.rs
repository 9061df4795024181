//! One execution: what is asked, what is answered, what can go wrong.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use serde::Serialize;
use tokio::sync::oneshot;

use super::{
    admission::Shortage,
    instance::{InstanceSpec, Protocol},
    setup::SetupError,
};
use crate::{adapter::CreateError, id::InstanceId, storage::objects::ObjectError};

/// Why a body broke off.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body whose bytes arrive over time.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// One request to a function.
#[derive(Debug)]
pub struct Execution {
    /// The instance that serves it.
    pub instance: InstanceId,
    /// How to make the instance where there is none. `None`: its absence is an error.
    pub spec: Option<Arc<InstanceSpec>>,
    /// What the function's server gets: method, path with query, headers, body.
    /// Headers that the protocol owns are dropped from it.
    pub request: Request<Body>,
    /// How long it may take; the function is told whole seconds of it.
    pub timeout: Duration,
    /// How long making the instance may take on top; `None` charges it to `timeout`.
    pub start_timeout: Option<Duration>,
    /// Whether the function's logs are collected.
    pub logging: bool,
    /// How the function's server is spoken to. The request is one of this protocol already; its secrets are the
    /// executor's to add.
    pub protocol: Protocol,
}

/// How an execution came by its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// All made now.
    Cold,
    /// The instance was there.
    Warm,
}

impl Start {
    /// As in metrics and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

/// How long each phase of a start took; zero where it did not happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Fetching the code.
    pub code: Duration,
    /// Namespaces from the pool, file systems.
    pub sandbox: Duration,
    /// The engine's container and task.
    pub create: Duration,
    /// Until the main process ran.
    pub start: Duration,
    /// From then until its port accepted.
    pub boot: Duration,
    /// From sending the request to the head of its answer.
    pub first_byte: Duration,
}

impl Phases {
    /// Names and durations, in order.
    pub fn named(&self) -> [(&'static str, Duration); 6] {
        [
            ("code", self.code),
            ("sandbox", self.sandbox),
            ("create", self.create),
            ("start", self.start),
            ("boot", self.boot),
            ("first_byte", self.first_byte),
        ]
    }
}

/// What the function wrote to its log and error log during one execution.
/// Each is at most 5 MiB and a line that says so where it was cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logs {
    /// Its log.
    pub logs: Vec<u8>,
    /// Its error log.
    pub errors: Vec<u8>,
}

/// The function's answer. The execution lasts until the body was read or dropped.
#[derive(Debug)]
pub struct Answer {
    /// Head and body as the function's server sent them, without the protocol's own headers.
    pub response: Response<Body>,
    /// How it came by its instance.
    pub start: Start,
    /// How long the start took, by phase.
    pub phases: Phases,
    /// When the function's own time began: after the instance was made.
    pub start_time: SystemTime,
    /// The same, for durations.
    pub began: Instant,
    /// What it logged; there after the body has ended.
    pub logs: oneshot::Receiver<Logs>,
}

/// Why an instance could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is one of that name.
    #[error("instance {id} exists already")]
    Conflict {
        /// Its name.
        id: InstanceId,
        /// Whether it is still being made.
        is_pending: bool,
    },
    /// Its code cannot be had.
    #[error("cannot get the code of instance {id}")]
    Code {
        /// Whose.
        id: InstanceId,
        /// Why.
        source: ObjectError,
    },
    /// Its sandbox could not be made.
    #[error("cannot start instance {id}")]
    Sandbox {
        /// Whose.
        id: InstanceId,
        /// Why.
        source: CreateError,
    },
    /// What was to be set up in it could not be.
    #[error("cannot set up instance {id}")]
    Setup {
        /// Whose.
        id: InstanceId,
        /// Why.
        source: SetupError,
    },
    /// Its main process ended before its port accepted a connection.
    #[error("instance {id} {exit} before it listened on port 3000")]
    Exited {
        /// Whose.
        id: InstanceId,
        /// How.
        exit: Exit,
    },
    /// There was no room for it on this node, or too much went on.
    #[error("instance {id} was not admitted")]
    NotAdmitted {
        /// Whose.
        id: InstanceId,
        /// Why.
        source: Shortage,
    },
    /// It was deleted while it was being made.
    #[error("instance {id} was deleted while it was being made")]
    Deleted {
        /// Whose.
        id: InstanceId,
    },
    /// The node takes no more instances: it is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// How a main process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 plus the signal that ended it.
    pub code: u32,
    /// Whether the kernel killed it for want of memory.
    pub out_of_memory: bool,
    /// The last lines that it wrote to standard output and error.
    pub output: String,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.out_of_memory {
            f.write_str("was killed by its memory limit")?;
        } else {
            write!(f, "exited with code {}", self.code)?;
        }
        if self.output.is_empty() {
            Ok(())
        } else {
            write!(f, ", having written: {}", self.output)
        }
    }
}

/// Whose fault a failure was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request's.
    Caller,
    /// The function's.
    Function,
    /// This machine's.
    Host,
    /// Too much was asked at once.
    Load,
}

/// Why an execution has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExecuteError {
    /// There is no such instance, and nothing to make it of.
    #[error("instance {id} not found")]
    NotFound {
        /// Its name.
        id: InstanceId,
    },
    /// The instance was deleted while the execution waited for it.
    #[error("instance {id} no longer exists")]
    Deleted {
        /// Its name.
        id: InstanceId,
    },
    /// The instance could not be made.
    #[error(transparent)]
    Start(Arc<StartError>),
    /// The instance was not ready in time.
    #[error("timed out waiting for instance {id}")]
    StartTimeout {
        /// Its name.
        id: InstanceId,
        /// Whether its main process runs, but its port refuses connections.
        is_running: bool,
    },
    /// The function's server sent no answer in time.
    #[error("instance {id} did not answer within {seconds} s")]
    Timeout {
        /// Its name.
        id: InstanceId,
        /// How long it had.
        seconds: u64,
    },
    /// Too many executions wait for the instance.
    #[error("instance {id} has {queue} executions waiting and takes no more")]
    QueueFull {
        /// Its name.
        id: InstanceId,
        /// The limit.
        queue: usize,
    },
    /// The main process ended while it worked on the execution.
    #[error("instance {id} {exit} during the execution")]
    Exited {
        /// Its name.
        id: InstanceId,
        /// How.
        exit: Exit,
    },
    /// The connection to the function's server broke, or what came was no HTTP.
    #[error("instance {id} broke off the execution: {reason}")]
    Broken {
        /// Its name.
        id: InstanceId,
        /// How.
        reason: String,
    },
}

impl ExecuteError {
    /// Whose fault it was.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotFound { .. } | Self::Deleted { .. } => Fault::Caller,
            Self::Start(error) => error.fault(),
            Self::StartTimeout { .. }
            | Self::Timeout { .. }
            | Self::Exited { .. }
            | Self::Broken { .. } => Fault::Function,
            Self::QueueFull { .. } => Fault::Load,
        }
    }

    /// A stable word for metrics, logs and answers.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } | Self::Deleted { .. } => "runtime_not_found",
            Self::Start(error) => error.kind(),
            Self::StartTimeout {
                is_running: true, ..
            } => "runtime_not_listening",
            Self::StartTimeout { .. } => "runtime_timeout",
            Self::Timeout { .. } => "execution_timeout",
            Self::QueueFull { .. } => "execution_queue_full",
            Self::Exited { exit, .. } => exit.kind(),
            Self::Broken { .. } => "execution_broken",
        }
    }

    /// Whether the function cannot have seen the execution.
    pub fn may_retry(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::Deleted { .. }
            | Self::Start(_)
            | Self::StartTimeout { .. }
            | Self::QueueFull { .. } => true,
            Self::Timeout { .. } | Self::Exited { .. } | Self::Broken { .. } => false,
        }
    }
}

impl StartError {
    /// Whose fault it was.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Conflict { .. } | Self::Deleted { .. } => Fault::Caller,
            Self::Code { source, .. } if source.is_missing() => Fault::Caller,
            Self::Code { .. } => Fault::Host,
            Self::Sandbox { source, .. } => match source {
                CreateError::Image { .. }
                | CreateError::Class { .. }
                | CreateError::Exists { .. }
                | CreateError::Command { .. } => Fault::Caller,
                CreateError::Prepare { .. }
                | CreateError::Engine { .. }
                | CreateError::Absent { .. } => Fault::Host,
            },
            Self::Setup { source, .. } => match source {
                SetupError::Failed { .. }
                | SetupError::Timeout { .. }
                | SetupError::Run { .. }
                | SetupError::Artifact { .. } => Fault::Function,
                SetupError::Store { .. } => Fault::Host,
                SetupError::QueueFull { .. } => Fault::Load,
            },
            Self::Exited { .. } => Fault::Function,
            Self::NotAdmitted { source, .. } => source.fault(),
            Self::Stopping => Fault::Load,
        }
    }

    /// A stable word for metrics, logs and answers.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "runtime_conflict",
            Self::Code { source, .. } if source.is_missing() => "source_missing",
            Self::Code { .. } => "source_failed",
            Self::Sandbox { source, .. } => match source {
                CreateError::Image { .. } => "image_missing",
                CreateError::Command { .. } => "runtime_command_failed",
                CreateError::Class { .. }
                | CreateError::Absent { .. }
                | CreateError::Exists { .. }
                | CreateError::Prepare { .. }
                | CreateError::Engine { .. } => "host_failed",
            },
            Self::Setup { source, .. } => match source {
                SetupError::Failed { .. } => "build_failed",
                SetupError::Timeout { .. } | SetupError::Run { .. } => "runtime_failed",
                SetupError::Artifact { .. } => "artifact_missing",
                SetupError::Store { .. } => "storage_failed",
                SetupError::QueueFull { .. } => "build_queue_full",
            },
            Self::Exited { exit, .. } => exit.kind(),
            Self::NotAdmitted { source, .. } => source.kind(),
            Self::Deleted { .. } => "runtime_not_found",
            Self::Stopping => "host_stopping",
        }
    }
}

impl Exit {
    fn kind(&self) -> &'static str {
        if self.out_of_memory {
            "runtime_out_of_memory"
        } else {
            "runtime_exited"
        }
    }
}
