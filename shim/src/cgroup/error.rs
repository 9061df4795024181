//! Why something could not be done with a cgroup.

use std::{fmt, io, path::PathBuf, time::Duration};

use super::device::PolicyError;

/// Why something could not be done with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// `linux.cgroupsPath` is refused.
    #[error("linux.cgroupsPath {path:?}: {reason}")]
    Path {
        /// As the spec has it.
        path: String,
        /// As in "it has an empty name".
        reason: &'static str,
    },
    /// This machine does not have what a field needs.
    #[error("{field} needs {what}, which this machine does not have")]
    Missing {
        /// As in `linux.resources.memory.limit`.
        field: String,
        /// As in "the controller memory".
        what: String,
    },
    /// A field's value is out of range.
    #[error("{field}: {reason}")]
    Value {
        /// As in `linux.resources.memory.swap`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The device rules have no meaning.
    #[error("linux.resources.devices")]
    Devices {
        /// Which rule, and why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cgroup cannot be made.
    #[error("cannot make cgroup {}", path.display())]
    Create {
        /// Its folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cgroup is in use already.
    #[error("cgroup {} is in use: {reason}", path.display())]
    Busy {
        /// Its folder.
        path: PathBuf,
        /// As in "it has 3 processes".
        reason: String,
    },
    /// The kernel refused a value.
    #[error("{field}: cannot write {}", file.display())]
    Write {
        /// As in `linux.resources.cpu.quota`, or what was to be done.
        field: String,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The processes did not do in time what they were told.
    #[error("processes of cgroup {} did not {what} within {within:?}", path.display())]
    Timeout {
        /// Its folder.
        path: PathBuf,
        /// As in "freeze".
        what: &'static str,
        /// How long was waited.
        within: Duration,
    },
    /// Not all of it could be removed.
    #[error("cannot remove {}", Failures(failures))]
    Remove {
        /// What is left, and why.
        failures: Vec<(PathBuf, io::Error)>,
    },
    /// systemd did not do what it was asked.
    #[error("systemd: {unit}: {reason}")]
    Systemd {
        /// The scope.
        unit: String,
        /// As in "it is not running".
        reason: String,
    },
}

impl CgroupError {
    /// Whether the cgroup, or the file asked for, is not there.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => {
                super::folder::is_gone(source)
            }
            _ => false,
        }
    }
}

impl From<PolicyError> for CgroupError {
    fn from(source: PolicyError) -> Self {
        let source = source.into();
        Self::Devices { source }
    }
}

struct Failures<'a>(&'a [(PathBuf, io::Error)]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (path, error)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}: {error}", path.display())?;
        }
        Ok(())
    }
}
