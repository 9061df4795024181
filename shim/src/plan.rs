//! What a spec means, decided before any process is made: the child only carries it out.
//!
//! Pure but for looks at the kernel's own tables. What is unknown or impossible is an error that names the field.
//! Descriptors are told by their place in the list that goes with the plan.

use std::{ffi::CString, path::PathBuf};

use serde::{Deserialize, Serialize};

mod mount;
mod namespace;
mod options;
mod process;
mod seccomp;
mod sysctl;

pub(crate) use mount::{
    Change, Device, FileSystem, Hierarchy, MountPlan, MountSource, Propagation, devices,
    is_dev_made, mounts,
};
pub(crate) use namespace::{IdMaps, Joined, NamespacePlan, namespaces};
pub(crate) use options::{MountOptions, parse as mount_options};
pub(crate) use process::{CapabilityPlan, ProcessPlan, Rlimit, process, rlimits};
pub(crate) use sysctl::sysctls;

/// What a process is born with: its plan follows while it is being made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Birth {
    /// Where the process talks with the shim.
    pub(crate) control: usize,
    /// The cgroup of version 2.
    pub(crate) cgroup: Option<usize>,
    pub(crate) namespaces: NamespacePlan,
    pub(crate) rlimits: Vec<Rlimit>,
}

/// What a process does before its program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Plan {
    /// The main process of a container.
    Container(Box<ContainerPlan>),
    /// A further one.
    Exec(Box<ExecPlan>),
}

/// What the main process of a container does before its program, as far as the bundle tells it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ContainerPlan {
    pub(crate) root: RootPlan,
    pub(crate) mounts: Vec<MountPlan>,
    /// None: `/dev` is somebody else's, and nothing is made in it.
    pub(crate) devices: Option<Vec<Device>>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) read_only: Vec<PathBuf>,
    /// File below `/proc/sys`, and what is written to it.
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    /// Whether the host runs hooks while the process waits with its mounts made.
    pub(crate) has_hooks: bool,
    pub(crate) create_hooks: Vec<HookPlan>,
    pub(crate) start_hooks: Vec<HookPlan>,
    pub(crate) process: ProcessPlan,
    /// `tasks` files of cgroups of version 1.
    pub(crate) tasks: Vec<usize>,
}

/// The rest of a container's plan.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Completion {
    /// The detached tree of the root file system.
    pub(crate) root: usize,
    /// Standard input, output and error; None: a terminal is made.
    pub(crate) streams: Option<[usize; 3]>,
    /// The name of the session keyring; None keeps that of the host.
    pub(crate) keyring: Option<CString>,
}

/// What a further process of a container does before its program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecPlan {
    pub(crate) process: ProcessPlan,
    /// As of [`Completion`].
    pub(crate) streams: Option<[usize; 3]>,
    /// As of [`ContainerPlan`].
    pub(crate) tasks: Vec<usize>,
}

/// What the root file system becomes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RootPlan {
    pub(crate) is_read_only: bool,
    pub(crate) propagation: Option<Propagation>,
}

/// A program that is run beside the container's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HookPlan {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    /// Seconds; 0 has no end.
    pub(crate) timeout_s: u64,
}

/// A spec that cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// As in `linux.namespaces`.
    pub field: String,
    /// What is wrong with it, and what is accepted.
    pub reason: String,
}

impl SpecError {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// A string as the kernel takes it.
pub(crate) fn c_string(field: &str, text: &str) -> Result<CString, SpecError> {
    CString::new(text).map_err(|_| SpecError::new(field, format!("{text:?} has a NUL byte")))
}

/// An absolute path without `.`, `..` and doubled slashes, as text alone.
pub(crate) fn clean(path: &std::path::Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                cleaned.pop();
            }
            std::path::Component::Normal(name) => cleaned.push(name),
            _ => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        for (path, expected) in [
            ("/a/./b//c", "/a/b/c"),
            ("a/../../b", "/b"),
            ("/..", "/"),
            ("", "/"),
        ] {
            assert_eq!(clean(path.as_ref()), PathBuf::from(expected), "{path}");
        }
    }
}
