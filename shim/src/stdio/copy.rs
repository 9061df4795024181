//! Moves bytes from one descriptor to another until the first ends.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{SpliceFlags, splice},
};
use tokio::io::Interest;

use super::endpoint::Target;
use crate::reaper::{Watched, watch};

/// How much is moved at once where the kernel cannot move it alone.
const CHUNK: usize = 8 << 10;

pub(super) const READABLE: Interest = Interest::READABLE;
pub(super) const WRITABLE: Interest = Interest::WRITABLE;

/// Where bytes go that pass through this process.
#[derive(Debug)]
pub(super) enum Output {
    Null,
    Pipe(Watched),
    File(Arc<File>),
}

impl Output {
    pub(super) fn new(target: Target) -> io::Result<Self> {
        Ok(match target {
            Target::Null => Self::Null,
            Target::Fifo(pipe) | Target::Logger(pipe) => {
                rustix::io::ioctl_fionbio(&pipe, true)?;
                Self::Pipe(watch(pipe, WRITABLE)?)
            }
            Target::File(file) => Self::File(Arc::new(file)),
        })
    }

    /// The bytes come back, for the next time.
    async fn write(&self, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::Null => Ok(bytes),
            Self::Pipe(pipe) => write_all(pipe, &bytes).await.map(|()| bytes),
            Self::File(file) => {
                let file = file.clone();
                let write = move || file.as_ref().write_all(&bytes).map(|()| bytes);
                tokio::task::spawn_blocking(write).await?
            }
        }
    }
}

/// From a process's pipe to a FIFO.
pub(super) async fn pour_spliced(from: Watched, to: Watched) {
    report("output", splice_all(&from, &to).await);
}

/// From a FIFO to a process's standard input, which ends with it.
pub(super) async fn feed_spliced(from: Watched, to: Watched) {
    report("input", splice_all(&from, &to).await);
}

/// From a terminal or a pipe to anything.
///
/// Output that finds no place is read and dropped: a full disk must not hold the process.
pub(super) async fn pour(from: Arc<Watched>, mut to: Output) {
    let mut bytes = vec![0; CHUNK];
    loop {
        bytes.resize(CHUNK, 0);
        match read(&from, &mut bytes).await {
            Ok(0) => return,
            Ok(n) => bytes.truncate(n),
            Err(e) => return report("output", Err(e)),
        }
        bytes = match to.write(bytes).await {
            Ok(bytes) => bytes,
            Err(e) => {
                report("output", Err(e));
                to = Output::Null;
                Vec::new()
            }
        };
    }
}

/// From a FIFO to a terminal.
pub(super) async fn feed(from: Watched, to: Arc<Watched>) {
    let mut bytes = vec![0; CHUNK];
    loop {
        bytes.resize(CHUNK, 0);
        match read(&from, &mut bytes).await {
            Ok(0) => return,
            Ok(n) => bytes.truncate(n),
            Err(e) => return report("input", Err(e)),
        }
        if let Err(e) = write_all(&to, &bytes).await {
            return report("input", Err(e));
        }
    }
}

/// The other side of a pipe or a terminal may go at any time; all else is worth a line.
fn report(what: &str, result: io::Result<()>) {
    let Err(e) = result else { return };
    let ends = [Errno::PIPE, Errno::IO].map(Errno::raw_os_error);
    if !e.raw_os_error().is_some_and(|code| ends.contains(&code)) {
        log::warn!("{what} ended: {e}");
    }
}

/// Moves pages from pipe to pipe in the kernel, without memory of this process.
///
/// The kernel does not say which side made it stop, so both are asked; what is not ready is waited for.
///
/// Source: splice(2).
async fn splice_all(from: &Watched, to: &Watched) -> io::Result<()> {
    loop {
        let mut readable = from.readable().await?;
        let mut writable = to.writable().await?;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(from.get_ref(), None, to.get_ref(), None, 1 << 20, flags) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if !is_ready(from, PollFlags::IN | PollFlags::HUP)? {
                    readable.clear_ready();
                }
                if !is_ready(to, PollFlags::OUT | PollFlags::ERR)? {
                    writable.clear_ready();
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn is_ready(fd: &Watched, wanted: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, wanted)];
    poll(&mut fds, Some(&Timespec::default()))?;
    Ok(fds[0].revents().intersects(wanted))
}

async fn read(from: &Watched, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = from.readable().await?;
        match ready.try_io(|from| Ok(rustix::io::read(from.as_fd(), &mut *bytes)?)) {
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

async fn write_all(to: &Watched, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = to.writable().await?;
        match ready.try_io(|to| Ok(rustix::io::write(to.as_fd(), bytes)?)) {
            Ok(n) => bytes = &bytes[n?..],
            Err(_would_block) => {}
        }
    }
    Ok(())
}
