//! What the process prints, by whatever means: descriptors 1 and 2 are a pipe that ends here. Nothing tells which thread has
//! printed, so that it is the execution's where only one is under way, and the process's own otherwise: nobody finds the
//! output of others in a log.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use libc::c_int;

use crate::logger::ExecutionLog;

/// As much as a pipe holds.
const PIPE_SIZE: usize = 64 << 10;

static NATIVE: OnceLock<Native> = OnceLock::new();

pub(crate) struct Native {
    reader: OwnedFd,
    output: File,
    active: Mutex<Vec<Arc<ExecutionLog>>>,
}

/// Redirects both descriptors, for good.
pub(crate) fn capture_output() -> io::Result<&'static Native> {
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let (reader, writer) = pipe()?;
    let native = NATIVE.get_or_init(|| Native {
        reader,
        output,
        active: Mutex::default(),
    });
    for descriptor in [1, 2] {
        // SAFETY: dup2 takes two descriptors and touches no memory; both are open, `writer` because it is borrowed.
        check(unsafe { libc::dup2(writer.as_raw_fd(), descriptor) })?;
    }
    // What is said with the last breath would stay in the pipe.
    // SAFETY: both stay for as long as the process, and `aborting` does what a signal's handler may.
    unsafe {
        check(libc::atexit(exiting))?;
        libc::signal(
            libc::SIGABRT,
            aborting as extern "C" fn(c_int) as libc::sighandler_t,
        );
    }
    thread::Builder::new()
        .name("output".to_owned())
        .spawn(|| native.follow())?;
    Ok(native)
}

impl Native {
    pub(crate) fn begin(&self, log: &Arc<ExecutionLog>) {
        self.delivered().push(Arc::clone(log));
    }

    /// Returns when what the execution has printed is in its log.
    pub(crate) fn end(&self, log: &Arc<ExecutionLog>) {
        self.delivered().retain(|other| !Arc::ptr_eq(other, log));
    }

    /// Delivers output as it comes.
    fn follow(&self) {
        let mut wait = libc::pollfd {
            fd: self.reader.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        loop {
            // SAFETY: one pollfd, which lives on this stack.
            unsafe { libc::poll(&raw mut wait, 1, -1) };
            drop(self.delivered());
        }
    }

    /// Who is active, once they have what is in the pipe. That is taken once, and no more: output may never end.
    fn delivered(&self) -> MutexGuard<'_, Vec<Arc<ExecutionLog>>> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; PIPE_SIZE];
        let text = self.read(&mut buffer);
        match &active[..] {
            _ if text.is_empty() => {}
            [log] => log.native(text),
            _ => drop((&self.output).write_all(text)),
        }
        active
    }

    /// What is there; nothing where nothing is.
    fn read<'a>(&self, buffer: &'a mut [u8]) -> &'a [u8] {
        // SAFETY: the kernel writes at most the buffer's length into it; the descriptor is open because it is owned.
        let read = unsafe {
            libc::read(
                self.reader.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        };
        &buffer[..usize::try_from(read).unwrap_or(0)]
    }

    /// What the process says when it ends is its own. Makes only calls of signal-safety(7).
    fn last_words(&self) {
        let mut buffer = [0; 1024];
        loop {
            let text = self.read(&mut buffer);
            if text.is_empty() || (&self.output).write_all(text).is_err() {
                return;
            }
        }
    }
}

/// Also where the function ends the process: what executions have logged so far is kept.
extern "C" fn exiting() {
    if let Some(native) = NATIVE.get() {
        native.delivered().iter().for_each(|log| log.flush());
    }
}

/// abort(3) ends the process when this returns.
extern "C" fn aborting(_signal: c_int) {
    if let Some(native) = NATIVE.get() {
        native.last_words();
    }
}

/// Only the end that is read here does not wait: who prints to a full pipe does.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 fills an array of two, whose descriptors are owned from here on; fcntl touches no memory.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        let [reader, writer] = ends.map(|end| OwnedFd::from_raw_fd(end));
        check(libc::fcntl(
            reader.as_raw_fd(),
            libc::F_SETFL,
            libc::O_NONBLOCK,
        ))?;
        Ok((reader, writer))
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
