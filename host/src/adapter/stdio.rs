//! What a sandbox's main process writes: FIFOs read into an [`Output`].

use std::{
    fs::File,
    io::{self, Write},
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

/// What ends a terminal's input for whoever reads it next: the character that Ctrl-D types.
const END_OF_INPUT: &[u8] = b"\x04";

/// The FIFOs of one sandbox, or of one process in it. A terminal has one for both streams.
pub(super) struct Stdio {
    /// Of a process with a terminal: its input.
    pub(super) stdin: Option<PathBuf>,
    pub(super) stdout: PathBuf,
    pub(super) stderr: Option<PathBuf>,
}

impl Stdio {
    pub(super) fn new(dir: &Path, terminal: bool) -> Self {
        Self {
            stdin: None,
            stdout: dir.join("stdout"),
            stderr: (!terminal).then(|| dir.join("stderr")),
        }
    }

    /// Those of a process beside the main one.
    pub(super) fn of_process(dir: &Path, process: &str, terminal: bool) -> Self {
        Self {
            stdin: terminal.then(|| dir.join(format!("{process}.stdin"))),
            stdout: dir.join(format!("{process}.stdout")),
            stderr: (!terminal).then(|| dir.join(format!("{process}.stderr"))),
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

    /// Reads the FIFOs until the last writer or the reader is gone. For the senders see [`Stdio::open`].
    pub(super) fn read(&self) -> io::Result<(Reader, Vec<Sender>)> {
        let (receivers, senders) = self.open()?;
        Ok((pump(receivers), senders))
    }

    /// Opens the FIFOs. The senders keep them open until containerd's shim has opened its own end; drop them then.
    pub(super) fn open(&self) -> io::Result<(Vec<Receiver>, Vec<Sender>)> {
        let mut receivers = Vec::new();
        let mut senders = Vec::new();
        for path in self.outputs() {
            receivers.push(OpenOptions::new().open_receiver(path)?);
            senders.push(OpenOptions::new().open_sender(path)?);
        }
        if let Some(path) = &self.stdin {
            // Nobody types: a program that asks all the same is not to wait for it.
            let mut input = File::options().read(true).write(true).open(path)?;
            input.write_all(END_OF_INPUT)?;
            senders.push(Sender::from_file(input)?);
        }
        Ok((receivers, senders))
    }

    /// Removes the FIFOs. Succeeds where one is gone.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.paths()
            .try_for_each(|path| match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        self.outputs().chain(self.stdin.as_deref())
    }

    fn outputs(&self) -> impl Iterator<Item = &Path> {
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
