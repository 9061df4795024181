//! What containerd executes: `start`, once for each container, and `delete`, once what is left must go.
//!
//! ```text
//! containerd ── start ──▶ connects to the group's socket ── answers ──▶ prints its address
//!                           └── nobody answers: binds it, spawns the daemon with it ──┘
//! ```
//!
//! Both are short and have no runtime; without an action this program is the daemon (see `serve`).

use std::{
    env,
    error::Error,
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use containerd_shim::{
    Flags,
    protos::{
        protobuf::{Message, MessageField},
        types::introspection::{RuntimeInfo, RuntimeVersion},
    },
};

use crate::{
    serve::{self, ServeError},
    socket::SocketError,
};

mod cleanup;
mod daemon;
mod group;
mod params;

const NAME: &str = "io.containerd.opr.v1";
const HELP: &str = "\
containerd-shim-opr-v1: makes OCI containers for containerd, which starts it by itself:

  ctr run --runtime io.containerd.opr.v1 IMAGE NAME

Usage: containerd-shim-opr-v1 [FLAGS] [start|delete]

  -namespace NAME       containerd's namespace
  -id NAME              the container
  -address PATH         containerd's socket
  -bundle PATH          the container's bundle, where it is not the working directory
  -socket ADDRESS       the socket that the daemon serves
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
    /// The daemon is not there.
    #[error("cannot start the daemon")]
    Spawn(#[source] io::Error),
    /// Something of the container is still there.
    #[error("cannot clean up after {id}: {reason}")]
    Cleanup {
        /// The container.
        id: String,
        /// What failed.
        reason: String,
    },
    /// The daemon ended badly.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Runs the program as its command line says.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut text = format!("containerd-shim-opr-v1: {e}");
            let mut cause = e.source();
            while let Some(error) = cause {
                text += &format!(": {error}");
                cause = error.source();
            }
            log::error!("{text}");
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[OsString]) -> Result<(), BootstrapError> {
    let is_help = |argument: &OsString| ["-h", "-help", "--help"].iter().any(|h| argument == h);
    if arguments.iter().any(is_help) {
        return print(HELP.as_bytes());
    }
    let flags =
        containerd_shim::parse(arguments).map_err(|e| BootstrapError::Request(e.to_string()))?;
    if flags.version {
        let text = format!("containerd-shim-opr-v1:\n  Version:  {}\n", version());
        return print(text.as_bytes());
    }
    if flags.info {
        return info();
    }
    if flags.namespace.is_empty() {
        let text = "-namespace is missing; -help says more".to_owned();
        return Err(BootstrapError::Request(text));
    }
    match flags.action.as_str() {
        "start" => daemon::start(&flags),
        "delete" => delete(&flags),
        "" => Ok(serve::run(&flags)?),
        other => Err(BootstrapError::Request(format!("unknown action {other:?}"))),
    }
}

/// Source: containerd's `api/types/introspection.proto`.
fn info() -> Result<(), BootstrapError> {
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: version().to_owned(),
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

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn encode(message: &impl Message) -> Result<Vec<u8>, BootstrapError> {
    let bytes = message.write_to_bytes();
    bytes.map_err(|e| BootstrapError::Request(e.to_string()))
}

fn print(bytes: &[u8]) -> Result<(), BootstrapError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|source| BootstrapError::File {
        what: "write",
        path: "standard output".into(),
        source,
    })
}
