//! What a process reads and writes: FIFOs as containerd gives them, files, loggers, a terminal.
//!
//! ```text
//! client ── FIFO ──▶ pipe ──▶ process ──▶ pipe ──▶ FIFO ── client
//!                   (splice)             (splice)
//! client ── FIFO ◀──▶ terminal's master ◀──▶ process
//! process ──▶ pipe ──▶ logger's descriptors 3 and 4
//! ```
//!
//! A process never gets a FIFO itself: through `/proc/self/fd` it could change its owner and mode. Each stream has a
//! task of its own and no memory of its own: the kernel moves pages from pipe to pipe. A client that is slow fills
//! its own pipes and holds nobody else.
//!
//! A FIFO for output is opened for both directions, so a client that goes away breaks nothing: what is written waits
//! for the next one. One for input gets a writer here, so it ends only after [`Io::close_stdin`].

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    termios::{Winsize, tcsetwinsize},
};
use tokio::task::JoinHandle;

use crate::launch::ProcessStdio;

mod copy;
mod endpoint;
mod logger;

use crate::reaper::{Launch, Watched, watch};
use copy::{Output, READABLE, WRITABLE, feed, feed_spliced, pour, pour_spliced};
use endpoint::Target;

/// Where containerd wants the streams. Empty means nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioConfig {
    /// A FIFO.
    pub stdin: String,
    /// A FIFO, `file://…` or `binary://…`.
    pub stdout: String,
    /// As `stdout`; a terminal has none.
    pub stderr: String,
    /// The process gets a terminal.
    pub terminal: bool,
}

/// Whose streams they are.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The container.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Who owns the pipes that the process gets.
    pub ids: (u32, u32),
}

/// Streams that are open, with nothing flowing yet.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<endpoint::Input>,
    /// The side of the process's standard input that is written here.
    stdin_pipe: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, Target)>,
    console: Option<Target>,
}

/// Streams that flow. Dropping it ends them.
#[derive(Debug)]
pub struct Io {
    stdin: Option<JoinHandle<()>>,
    /// Keeps the FIFO for input from ending while clients come and go.
    stdin_writer: Mutex<Option<OwnedFd>>,
    outputs: Mutex<Vec<JoinHandle<()>>>,
    console: Option<Arc<Watched>>,
}

/// Why the streams cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The address is of no known kind.
    #[error("stdio {uri:?}: {reason}")]
    Address {
        /// As containerd gave it.
        uri: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel refused a FIFO or a file.
    #[error("cannot open stdio {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a pipe.
    #[error("cannot make a pipe")]
    Pipe(#[source] io::Error),
    /// The logger did not start or did not say that it is ready.
    #[error("logger {program}")]
    Logger {
        /// Its program.
        program: String,
        /// Why.
        source: io::Error,
    },
}

impl Streams {
    /// Opens the streams; the process gets the first of the answer.
    ///
    /// # Errors
    /// See [`StdioError`].
    pub async fn open(
        config: &StdioConfig,
        owner: Owner<'_>,
        launch: &Launch,
    ) -> Result<(ProcessStdio, Self), StdioError> {
        let (mut stdout, mut stderr) = endpoint::outputs(config, owner, launch).await?;
        let stdin = endpoint::Input::open(&config.stdin)?;
        if config.terminal {
            let streams = Self {
                stdin,
                stdin_pipe: None,
                outputs: Vec::new(),
                console: Some(stdout),
            };
            return Ok((ProcessStdio::Terminal, streams));
        }
        let (read, write) = match stdin {
            Some(_) => pipe(owner).map(|(read, write)| (read, Some(write)))?,
            None => (endpoint::null()?, None),
        };
        let mut outputs = Vec::new();
        let mut ends = Vec::new();
        for target in [&mut stdout, &mut stderr] {
            ends.push(match std::mem::replace(target, Target::Null) {
                Target::Null => endpoint::null()?,
                Target::Logger(pipe) => pipe,
                target @ (Target::Fifo(_) | Target::File(_)) => {
                    let (read, write) = pipe(owner)?;
                    outputs.push((read, target));
                    write
                }
            });
        }
        let [stdout, stderr] = ends.try_into().expect("two were pushed");
        let streams = Self {
            stdin,
            stdin_pipe: write,
            outputs,
            console: None,
        };
        Ok((ProcessStdio::Streams([read, stdout, stderr]), streams))
    }

    /// Lets the streams flow. `console` is the terminal's master, where there is one.
    ///
    /// # Errors
    /// The runtime takes no more descriptors.
    pub fn run(self, console: Option<OwnedFd>) -> io::Result<Io> {
        let mut io = Io {
            stdin: None,
            stdin_writer: Mutex::default(),
            outputs: Mutex::default(),
            console: None,
        };
        let mut outputs = Vec::new();
        for (from, target) in self.outputs {
            outputs.push(run_output(from, target)?);
        }
        if let Some(console) = console {
            rustix::io::ioctl_fionbio(&console, true)?;
            let console = Arc::new(watch(console, READABLE | WRITABLE)?);
            io.console = Some(console.clone());
            let target = self.console.unwrap_or(Target::Null);
            outputs.push(tokio::spawn(pour(console, Output::new(target)?)));
        }
        io.outputs = Mutex::new(outputs);
        if let Some(input) = self.stdin {
            io.stdin_writer = Mutex::new(Some(input.writer));
            let from = watch(input.reader, READABLE)?;
            io.stdin = match (&io.console, self.stdin_pipe) {
                (Some(console), _) => Some(tokio::spawn(feed(from, console.clone()))),
                (None, Some(pipe)) => {
                    rustix::io::ioctl_fionbio(&pipe, true)?;
                    Some(tokio::spawn(feed_spliced(from, watch(pipe, WRITABLE)?)))
                }
                (None, None) => None,
            };
        }
        Ok(io)
    }
}

impl Io {
    /// The input ends as soon as its clients have closed it. A second call changes nothing.
    pub fn close_stdin(&self) {
        self.stdin_writer
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .take();
    }

    /// Tells the terminal its size. Without a terminal it changes nothing.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let Some(console) = &self.console else {
            return Ok(());
        };
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(console.get_ref(), size)?)
    }

    /// The process has ended: nobody reads the input any longer.
    pub fn stop_stdin(&self) {
        self.close_stdin();
        if let Some(stdin) = &self.stdin {
            stdin.abort();
        }
    }

    /// Waits until all output is where it belongs, or `bound` is over, and ends the streams.
    pub async fn drain(&self, bound: Duration) {
        self.stop_stdin();
        let outputs = std::mem::take(&mut *self.outputs.lock().unwrap_or_else(|e| e.into_inner()));
        let aborts: Vec<_> = outputs.iter().map(JoinHandle::abort_handle).collect();
        let all = futures_util::future::join_all(outputs);
        if tokio::time::timeout(bound, all).await.is_err() {
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.stop_stdin();
        let outputs = self.outputs.get_mut().unwrap_or_else(|e| e.into_inner());
        outputs.iter().for_each(JoinHandle::abort);
    }
}

fn run_output(from: OwnedFd, target: Target) -> io::Result<JoinHandle<()>> {
    rustix::io::ioctl_fionbio(&from, true)?;
    let from = watch(from, READABLE)?;
    Ok(match target {
        Target::Fifo(fifo) => tokio::spawn(pour_spliced(from, watch(fifo, WRITABLE)?)),
        target => tokio::spawn(pour(Arc::new(from), Output::new(target)?)),
    })
}

/// A pipe that the owner may open again, as `/dev/stdout` does.
fn pipe(owner: Owner<'_>) -> Result<(OwnedFd, OwnedFd), StdioError> {
    let ends = pipe_with(PipeFlags::CLOEXEC).map_err(|e| StdioError::Pipe(e.into()))?;
    if owner.ids != (0, 0) {
        let (uid, gid) = owner.ids;
        let (uid, gid) = (
            Some(rustix::fs::Uid::from_raw(uid)),
            Some(rustix::fs::Gid::from_raw(gid)),
        );
        rustix::fs::fchown(ends.0.as_fd(), uid, gid).map_err(|e| StdioError::Pipe(e.into()))?;
    }
    Ok(ends)
}

#[cfg(test)]
mod tests;
