//! Where the node's own log is written: standard error, in as few system calls as will do.
//!
//! A worker of the runtime holds its lines back until it has nothing else to do: an answer does not wait for its
//! line, and under load many lines are one write. A process that is killed loses what it did in that moment.

use std::{
    cell::RefCell,
    io::{self, Write},
};

/// Lines held back by one thread, at most; more are written at once. Bytes.
const MAX_HELD: usize = 16 * 1024;

thread_local! {
    /// `None`: the thread is no worker, and writes each line at once.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Lines that are still to be written. Dropping it, as the end of its thread does, writes them.
#[derive(Default)]
struct Held(Vec<u8>);

impl Held {
    fn write(&mut self) {
        if !self.0.is_empty() {
            // Where the log cannot be written, there is nobody to tell.
            let _ = io::stderr().write_all(&self.0);
            self.0.clear();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.write();
    }
}

/// Writes what the calling thread holds back. A worker calls this before it waits, and holds back what follows.
pub fn flush() {
    HELD.with(|held| held.borrow_mut().get_or_insert_default().write());
}

/// What lines are written to, each by one call.
#[derive(Debug, Clone, Copy)]
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let hold = |held: &RefCell<Option<Held>>| {
            let mut held = held.borrow_mut();
            let Some(held) = held.as_mut() else {
                return false;
            };
            held.0.extend_from_slice(line);
            if held.0.len() >= MAX_HELD {
                held.write();
            }
            true
        };
        // A thread that is ending holds nothing any more.
        if !HELD.try_with(hold).unwrap_or(false) {
            io::stderr().write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that this thread holds back after one more line.
    fn after(line: &[u8]) -> Option<usize> {
        Lines.write_all(line).unwrap();
        HELD.with(|held| held.borrow().as_ref().map(|held| held.0.len()))
    }

    #[test]
    fn a_worker_holds_lines_back_until_it_waits_and_others_do_not() {
        let worker = || {
            assert_eq!(after(b"at once\n"), None);
            flush();
            assert_eq!(after(b"first\n"), Some(6));
            assert_eq!(after(b"second\n"), Some(13));
            flush();
            assert_eq!(after(b"third\n"), Some(6));
        };
        std::thread::spawn(worker).join().unwrap();
    }

    #[test]
    fn a_worker_that_never_waits_writes_all_the_same() {
        let worker = || {
            flush();
            assert_eq!(after(&[b'\n'; MAX_HELD - 1]), Some(MAX_HELD - 1));
            assert_eq!(after(b"\n"), Some(0));
        };
        std::thread::spawn(worker).join().unwrap();
    }
}
