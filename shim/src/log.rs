//! The log: lines into the FIFO that containerd reads, one FIFO in each bundle.
//!
//! The process outlives the bundle that it was started for, and containerd stops to read a FIFO whose container is
//! gone. So each new container offers its own FIFO, which is taken when nobody reads the present one. A line that
//! finds no room is dropped: a containerd that hangs must not hold the containers.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Mutex,
};

use containerd_shim::logger::FifoLogger;
use log::{LevelFilter, Log, Metadata, Record};
use nix::libc;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FileType,
};

static LOGGER: Logger = Logger {
    fifo: Mutex::new(None),
};

/// Sends the log to the FIFO of the bundle. A bundle without one gets no log.
pub fn init(bundle: &Path, debug: bool) {
    attach(bundle);
    log::set_max_level(match debug {
        true => LevelFilter::Debug,
        false => LevelFilter::Info,
    });
    // It fails only where a logger is set already, as in a test.
    let _ = log::set_logger(&LOGGER);
}

/// Offers the FIFO of a new bundle.
pub fn attach(bundle: &Path) {
    let mut fifo = LOGGER.fifo.lock().unwrap_or_else(|e| e.into_inner());
    if fifo.as_ref().is_some_and(Fifo::is_read) {
        return;
    }
    *fifo = Fifo::open(&bundle.join("log"));
}

struct Logger {
    fifo: Mutex<Option<Fifo>>,
}

struct Fifo {
    file: File,
    lines: FifoLogger,
}

impl Fifo {
    /// Only a FIFO with a reader is opened.
    fn open(path: &Path) -> Option<Self> {
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(path)
            .ok()?;
        let kind = rustix::fs::fstat(&file).ok()?.st_mode;
        if FileType::from_raw_mode(kind) != FileType::Fifo {
            return None;
        }
        let lines = FifoLogger::with_file(file.try_clone().ok()?);
        Some(Self { file, lines })
    }

    /// The writing side of a pipe shows an error as soon as the last reader is gone.
    ///
    /// Source: poll(2).
    fn is_read(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        let now = Timespec::default();
        poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::ERR)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if let Ok(fifo) = self.fifo.lock()
            && let Some(fifo) = fifo.as_ref()
        {
            fifo.lines.log(record);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::{CWD, Mode};

    use super::*;

    fn bundle() -> tempfile::TempDir {
        let bundle = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            CWD,
            bundle.path().join("log"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        bundle
    }

    fn reader(bundle: &Path) -> File {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(bundle.join("log"))
            .unwrap()
    }

    #[test]
    fn moves_to_a_fifo_that_is_read() {
        let (first, second) = (bundle(), bundle());
        let first_reader = reader(first.path());
        let mut second_reader = reader(second.path());
        init(first.path(), false);
        attach(second.path());
        log::info!("to the first");
        drop(first_reader);
        attach(second.path());
        log::info!("to the second");
        let mut text = [0; 256];
        let n = second_reader.read(&mut text).unwrap();
        let text = str::from_utf8(&text[..n]).unwrap();
        assert!(text.contains("to the second"), "{text}");
        assert!(!text.contains("to the first"), "{text}");
    }
}
