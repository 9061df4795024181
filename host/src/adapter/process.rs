//! A process in a sandbox beside its main one: what it writes, how it ends, and that it ends with its owner.

use std::{fmt, future::ready, time::Duration};

use futures_util::{StreamExt, stream::select_all};
use tokio::{io::AsyncRead, sync::oneshot};
use tokio_util::{io::ReaderStream, sync::DropGuard};

/// The exit code of what SIGKILL ended.
pub(super) const KILLED: u32 = 128 + 9;
/// How long the last output may take to arrive once the process has ended: one that it left behind may hold
/// its output open.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
const CHUNK: usize = 16 * 1024;

/// What a process writes, in order.
pub(super) type Stream = Box<dyn AsyncRead + Send + Sync + Unpin>;

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Program and arguments; the program is looked up in the sandbox's `PATH`.
    pub command: Vec<String>,
    /// Whether it has a terminal for its output (CR LF line ends, colours).
    pub terminal: bool,
}

/// A running process. Dropping it kills what is left of the process and of its process group.
pub struct Process {
    streams: Vec<Stream>,
    exit: oneshot::Receiver<u32>,
    _leash: DropGuard,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

impl Process {
    /// A process that writes to `streams`: its terminal, or standard output and error. An `exit` that is
    /// dropped says that it went with its sandbox.
    pub(super) fn new(
        streams: Vec<Stream>,
        exit: oneshot::Receiver<u32>,
        leash: DropGuard,
    ) -> Self {
        Self {
            streams,
            exit,
            _leash: leash,
        }
    }

    /// Waits for its end, and tells each part of its output as it comes: number 0 is its terminal or
    /// standard output, 1 standard error. Answers its exit code, or 128 plus the signal that ended it.
    pub async fn run(self, mut told: impl FnMut(usize, &[u8])) -> u32 {
        let Self {
            streams,
            mut exit,
            _leash,
        } = self;
        let parts = streams.into_iter().enumerate().map(|(number, stream)| {
            ReaderStream::with_capacity(stream, CHUNK)
                .filter_map(move |part| ready(part.ok().map(|part| (number, part))))
        });
        let mut parts = select_all(parts);
        let code = loop {
            tokio::select! {
                Some((number, part)) = parts.next() => told(number, &part),
                code = &mut exit => break code.unwrap_or(KILLED),
            }
        };
        let rest = async {
            while let Some((number, part)) = parts.next().await {
                told(number, &part);
            }
        };
        // What was told by then is what there is.
        let _ = tokio::time::timeout(LAST_OUTPUT, rest).await;
        code
    }
}
