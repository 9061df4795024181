//! What a sandbox's main process writes: FIFOs read into an [`Output`].

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rustix::fs::{FileType, Mode};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::{OpenOptions, Receiver, Sender},
    task::JoinHandle,
};

use super::Output;

/// The latest bytes that are kept of a sandbox's output.
const KEPT: usize = 256 * 1024;
const CHUNK: usize = 16 * 1024;

/// The FIFOs of one sandbox. A terminal has one for both streams.
pub(super) struct Stdio {
    pub(super) stdout: PathBuf,
    pub(super) stderr: Option<PathBuf>,
}

impl Stdio {
    pub(super) fn new(dir: &Path, terminal: bool) -> Self {
        Self {
            stdout: dir.join("stdout"),
            stderr: (!terminal).then(|| dir.join("stderr")),
        }
    }

    pub(super) fn create(&self) -> io::Result<()> {
        for path in self.paths() {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                FileType::Fifo,
                Mode::RUSR | Mode::WUSR,
                0,
            )?;
        }
        Ok(())
    }

    /// Reads the FIFOs until the last writer or the reader is gone. The senders keep them open until
    /// containerd's shim has opened its own end; drop them then.
    pub(super) fn read(&self) -> io::Result<(Reader, Vec<Sender>)> {
        let mut receivers = Vec::new();
        let mut senders = Vec::new();
        for path in self.paths() {
            receivers.push(OpenOptions::new().open_receiver(path)?);
            senders.push(OpenOptions::new().open_sender(path)?);
        }
        Ok((pump(receivers), senders))
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.stdout.as_path()).chain(self.stderr.as_deref())
    }
}

/// Reads one sandbox's FIFOs until it is dropped.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) output: Arc<Output>,
    task: JoinHandle<()>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
        if !self.output.is_closed() {
            self.output.close();
        }
    }
}

/// Ends when all writers are gone; the last one closes the output.
fn pump(receivers: Vec<Receiver>) -> Reader {
    let output = Arc::new(Output::new(KEPT));
    let feed = Arc::clone(&output);
    let task = tokio::spawn(async move {
        let reads = receivers.into_iter().map(|receiver| copy(receiver, &feed));
        futures_util::future::join_all(reads).await;
        feed.close();
    });
    Reader { output, task }
}

async fn copy(mut receiver: Receiver, output: &Output) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match receiver.read(&mut buffer).await {
            Ok(0) => return,
            Ok(n) => output.push(Bytes::copy_from_slice(&buffer[..n])),
            Err(error) => {
                tracing::warn!(%error, "output of a sandbox was lost");
                return;
            }
        }
    }
}
