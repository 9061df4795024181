//! What containerd executes: `start`, once for each container, and `delete`, once what is left must go.
//!
//! ```text
//! containerd ── start ──▶ connects to the group's socket ── announces the container ──▶ prints its address
//!                           └── nobody answers: binds it, spawns the daemon with it ──────┘
//! ```
//!
//! What containerd executes is the small program of `shim/start`, which does the upper line. For all else it executes
//! this one, which does both. The daemon is a program of its own (see `serve`): what the linker relocates and the
//! kernel maps is the longest part of such a short life.

use std::{env, io, path::PathBuf, process::ExitCode};

use containerd_shim::{
    Flags,
    protos::{
        protobuf::{Message, MessageField},
        types::introspection::{RuntimeInfo, RuntimeVersion},
    },
};

use crate::{program, socket::SocketError};

mod cleanup;
mod daemon;
mod group;
mod params;

const NAME: &str = "io.containerd.opr.v1";
const HELP: &str = "\
containerd-shim-opr-v1: makes OCI containers for containerd, which starts it by itself:

  ctr run --runtime io.containerd.opr.v1 IMAGE NAME

Usage: containerd-shim-opr-v1 [FLAGS] start|delete

  -namespace NAME       containerd's namespace
  -id NAME              the container
  -address PATH         containerd's socket
  -bundle PATH          the container's bundle, where it is not the working directory
  -publish-binary PATH  accepted for containerd's sake
  -debug                more lines in the log
  -info                 prints what this runtime is, as containerd's message
  -v, -version          prints the version
  -h, -help             prints this
";

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The command line or what stands on standard input is bad.
    #[error("{0}")]
    Request(String),
    /// A file or a socket.
    #[error("cannot {what} {path}")]
    File {
        /// As in "bind".
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The group's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The daemon's program is not there, or does not start.
    #[error("cannot start the daemon {}", program.display())]
    Spawn {
        /// Beside this program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something of the container is still there.
    #[error("cannot clean up after {id}: {reason}")]
    Cleanup {
        /// The container.
        id: String,
        /// What failed.
        reason: String,
    },
}

/// Runs the program as its command line says.
#[must_use]
pub fn main() -> ExitCode {
    program::main("containerd-shim-opr-v1", HELP, run)
}

fn run(flags: &Flags) -> Result<(), BootstrapError> {
    if flags.info {
        return info();
    }
    if flags.namespace.is_empty() {
        let text = "-namespace is missing; -help says more".to_owned();
        return Err(BootstrapError::Request(text));
    }
    match flags.action.as_str() {
        "start" => daemon::start(flags),
        "delete" => delete(flags),
        other => {
            let text = format!("{other:?} is no action: start and delete are");
            Err(BootstrapError::Request(text))
        }
    }
}

/// Source: containerd's `api/types/introspection.proto`.
fn info() -> Result<(), BootstrapError> {
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: program::VERSION.to_owned(),
            ..RuntimeVersion::default()
        }),
        ..RuntimeInfo::default()
    };
    print(&encode(&info)?)
}

/// Removes what a container left behind, in the working directory or in `-bundle`.
fn delete(flags: &Flags) -> Result<(), BootstrapError> {
    let bundle = match flags.bundle.as_str() {
        "" => env::current_dir().map_err(|source| BootstrapError::File {
            what: "find",
            path: ".".into(),
            source,
        })?,
        bundle => bundle.into(),
    };
    let response = cleanup::run(&flags.namespace, &flags.id, &bundle)?;
    print(&encode(&response)?)
}

fn encode(message: &impl Message) -> Result<Vec<u8>, BootstrapError> {
    let bytes = message.write_to_bytes();
    bytes.map_err(|e| BootstrapError::Request(e.to_string()))
}

fn print(bytes: &[u8]) -> Result<(), BootstrapError> {
    program::print(bytes).map_err(|source| BootstrapError::File {
        what: "write",
        path: "standard output".into(),
        source,
    })
}

#[cfg(test)]
#[path = "../start/src/address.rs"]
mod address;

#[cfg(test)]
mod tests {
    use containerd_shim::StartOpts;

    use super::address;

    #[track_caller]
    fn check(containerd: &str, namespace: &str, group: &str, is_told: bool) {
        let options = StartOpts {
            address: containerd.to_owned(),
            namespace: namespace.to_owned(),
            ..StartOpts::default()
        };
        let expected = is_told.then(|| options.socket_address(group));
        assert_eq!(address::of(containerd, namespace, group), expected);
    }

    #[test]
    fn both_programs_find_the_same_socket() {
        check("/run/containerd/containerd.sock", "default", "c1", true);
        check("/run/c.sock", "k8s.io", "ä b/c", true);
        check("c.sock", "..", ".", true);
        check("/run/c.sock/", "default", "c1", false);
        check("/run/c.sock", "/default", "c1", false);
        check("/run/c.sock", "default", "/c1", false);
        check("", "default", "c1", false);
        check("/run/c.sock", "default", "", false);
    }
}
