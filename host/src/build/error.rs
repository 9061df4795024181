//! What can go wrong with a deployment, and whose fault it is.

use std::{io, path::PathBuf};

use super::artifact::ArtifactError;
use crate::{
    code::{CodeError, unpack::confined::ConfinedError},
    executor::execution::{Exit, Fault, StartError},
    function::{StoreError, catalog::UnknownRuntime},
    id::{ClassName, FunctionName},
    storage::StorageError,
};

/// Why a function was not deployed. The previous one goes on.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no such runtime.
    #[error(transparent)]
    Runtime(#[from] UnknownRuntime),
    /// There is no such class.
    #[error("there is no class {class}; the settings have {}", known.join(", "))]
    Class {
        /// Its name.
        class: ClassName,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A value of the function cannot be used.
    #[error("{what} {value:?} cannot be used: {why}")]
    Value {
        /// Which value.
        what: &'static str,
        /// It.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The source cannot be copied.
    #[error("cannot take the source {path}")]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too many builds wait.
    #[error("{n_waiting} builds run or wait, and this node takes no more")]
    QueueFull {
        /// How many.
        n_waiting: usize,
    },
    /// The node ends.
    #[error("this node is stopping")]
    Stopping,
    /// The sandbox was not made.
    #[error("cannot start the build of {function}")]
    Start {
        /// Whose.
        function: FunctionName,
        /// Why.
        source: StartError,
    },
    /// The build's command failed.
    #[error("the build of {function} {exit}")]
    Failed {
        /// Whose.
        function: FunctionName,
        /// How.
        exit: Exit,
    },
    /// The build took too long.
    #[error("the build of {function} took longer than {seconds} s")]
    Timeout {
        /// Whose.
        function: FunctionName,
        /// How long it had.
        seconds: u64,
    },
    /// What the build left is no artifact.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The artifact was not kept.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The artifact was not unpacked.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The function's file is not in what was built.
    #[error("missing entrypoint {entrypoint:?}: the build made {found}")]
    Entrypoint {
        /// The file.
        entrypoint: String,
        /// The names that there are.
        found: String,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BuildError {
    /// Whose fault it was.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Runtime(_)
            | Self::Class { .. }
            | Self::Value { .. }
            | Self::Source { .. }
            | Self::Storage(StorageError::TooLarge { .. }) => Fault::Caller,
            Self::QueueFull { .. } | Self::Stopping => Fault::Load,
            Self::Start { source, .. } => source.fault(),
            Self::Failed { .. } | Self::Timeout { .. } | Self::Entrypoint { .. } => Fault::Function,
            Self::Artifact(error) => match error {
                ArtifactError::Missing { .. }
                | ArtifactError::Special { .. }
                | ArtifactError::TooLarge { .. } => Fault::Function,
                ArtifactError::Read { .. } => Fault::Host,
            },
            Self::Code(CodeError::Unpack { source, .. }) => match source {
                ConfinedError::Refused { .. } => Fault::Function,
                ConfinedError::Failed { .. }
                | ConfinedError::Stopped { .. }
                | ConfinedError::Host { .. } => Fault::Host,
            },
            Self::Code(CodeError::Disk { .. } | CodeError::Damaged { .. })
            | Self::Storage(StorageError::Source { .. } | StorageError::Disk { .. })
            | Self::Store(_) => Fault::Host,
        }
    }

    /// A stable word for metrics, logs and answers.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Runtime(_) => "runtime_unknown",
            Self::Class { .. } | Self::Value { .. } => "function_invalid",
            Self::Source { .. } => "source_missing",
            Self::QueueFull { .. } => "build_queue_full",
            Self::Stopping => "host_stopping",
            Self::Start { source, .. } => source.kind(),
            Self::Failed { .. } => "build_failed",
            Self::Timeout { .. } => "build_timeout",
            Self::Artifact(_) => "artifact_invalid",
            Self::Entrypoint { .. } => "entrypoint_missing",
            Self::Code(_) if self.fault() == Fault::Function => "artifact_invalid",
            Self::Code(_) | Self::Storage(_) | Self::Store(_) => "host_failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_artifact_is_the_functions_fault_and_a_full_disk_the_hosts() {
        let digest = crate::id::Digest::from_sha256([0; 32]);
        let check = |source, fault, kind| {
            let digest = digest.clone();
            let error = BuildError::Code(CodeError::Unpack { digest, source });
            assert_eq!((error.fault(), error.kind()), (fault, kind), "{error}");
        };
        let reason = String::new;
        check(
            ConfinedError::Refused { reason: reason() },
            Fault::Function,
            "artifact_invalid",
        );
        let target = PathBuf::new();
        let reason = reason();
        check(
            ConfinedError::Failed { target, reason },
            Fault::Host,
            "host_failed",
        );
    }
}
