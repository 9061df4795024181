//! What an instance is made of, and what is told of it.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    str::FromStr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::Limits,
    id::{ClassName, FunctionName, InstanceId},
};

/// How an execution becomes a request to the server in a sandbox, and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// One JSON document each way.
    V2,
    /// As [`Protocol::V5`], without log files.
    V4,
    /// Plain HTTP with `x-open-runtimes-*` headers.
    V5,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "v2",
            Self::V4 => "v4",
            Self::V5 => "v5",
        })
    }
}

/// A text that names no protocol.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no protocol version: v2, v4 or v5")]
pub struct ProtocolError(String);

impl FromStr for Protocol {
    type Err = ProtocolError;
    fn from_str(text: &str) -> Result<Self, ProtocolError> {
        match text.to_ascii_lowercase().as_str() {
            "v2" => Ok(Self::V2),
            "v4" => Ok(Self::V4),
            "v5" => Ok(Self::V5),
            _ => Err(ProtocolError(text.to_owned())),
        }
    }
}

/// All that is needed to make an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceSpec {
    /// Its name: one instance of a name at a time.
    pub id: InstanceId,
    /// The deployed function that it serves; none where a client of the executor API brought it.
    pub function: Option<FunctionName>,
    /// Class of its sandbox.
    pub class: ClassName,
    /// Its image.
    pub image: opr_images::Reference,
    /// How the server in it is spoken to.
    pub protocol: Protocol,
    /// The main process; `None` takes the image's.
    pub command: Option<Vec<String>>,
    /// The function's file, told to the server.
    pub entrypoint: String,
    /// The function's environment. The protocol's own variables win over it.
    pub variables: BTreeMap<String, String>,
    /// The function's code.
    pub code: Code,
    /// Limits of its sandbox.
    pub limits: Limits,
    /// Whether its main process is started again when it ends.
    pub restart: RestartPolicy,
    /// How long it stays without an execution; `None` takes the node's setting.
    pub keep_alive: Option<Duration>,
}

/// Whether a main process that has ended by itself is started again, in the same sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never: the instance has ended.
    #[default]
    No,
    /// Always.
    Always,
    /// Where its exit code is not 0.
    OnFailure,
    /// As [`RestartPolicy::Always`]: here nobody stops an instance without deleting it.
    UnlessStopped,
}

impl RestartPolicy {
    /// Its name on the wire.
    pub const NAMES: &[&str] = &["no", "always", "on-failure", "unless-stopped"];

    /// Whether a main process that ended with `code` is started again.
    pub(super) fn restarts(self, code: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure => code != 0,
        }
    }
}

/// A text that names no restart policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no restart policy: no, always, on-failure or unless-stopped")]
pub struct RestartPolicyError(String);

impl FromStr for RestartPolicy {
    type Err = RestartPolicyError;
    fn from_str(text: &str) -> Result<Self, RestartPolicyError> {
        match text {
            "no" => Ok(Self::No),
            "always" => Ok(Self::Always),
            "on-failure" => Ok(Self::OnFailure),
            "unless-stopped" => Ok(Self::UnlessStopped),
            _ => Err(RestartPolicyError(text.to_owned())),
        }
    }
}

/// Where an instance's code is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// It has none.
    None,
    /// Unpacked in this directory of the host: seen read-only at `/usr/local/server/src/function`.
    Unpacked(PathBuf),
    /// In the archive at this path of the storage: seen read-only at `/tmp/code.tar.gz`, or at `/tmp/code.tar`,
    /// `/tmp/code.sqfs` or `/tmp/code.erofs` where its name ends so.
    Archive(String),
}

/// What is told of an instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstanceInfo {
    /// Its name.
    pub id: InstanceId,
    /// The deployed function that it serves.
    pub function: Option<FunctionName>,
    /// Class of its sandbox.
    pub class: ClassName,
    /// Its image.
    pub image: String,
    /// How the server in it is spoken to.
    pub protocol: Protocol,
    /// What `uname -n` answers inside: 32 hexadecimal digits.
    pub hostname: String,
    /// The secret that its server expects.
    #[serde(skip)]
    pub key: String,
    /// When its creation began.
    #[serde(skip)]
    pub created: SystemTime,
    /// When it was last used.
    #[serde(skip)]
    pub updated: SystemTime,
    /// How long its creation took; none while it is being made.
    pub start_duration: Option<Duration>,
    /// Whether its port accepted a connection.
    pub is_listening: bool,
    /// Executions in it or waiting for it.
    pub n_executions: usize,
    /// All executions that were ever let in.
    #[serde(skip)]
    pub n_admitted: u64,
}
