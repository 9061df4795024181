//! FIFOs as a client of containerd makes them, and what a process writes into them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    sync::watch,
    task::JoinHandle,
    time,
};

use super::node::DEADLINE;

/// A process that writes more is not read on.
const CAP: usize = 64 << 20;

/// What there is to be read and written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) terminal: bool,
    /// No standard output and error at all.
    pub(crate) silent: bool,
    /// Standard output and error are there, and nobody reads them.
    pub(crate) unread: bool,
}

/// The standard streams of one process.
pub(crate) struct Stdio {
    folder: PathBuf,
    wanted: Wanted,
    stdin: Option<pipe::Sender>,
    stdout: Reader,
    stderr: Reader,
}

#[derive(Default)]
struct Reader {
    /// Keeps the pipe open.
    #[expect(dead_code, reason = "it is there to be held")]
    unread: Option<pipe::Receiver>,
    seen: Option<watch::Receiver<Seen>>,
    task: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    is_closed: bool,
}

impl Stdio {
    pub(crate) fn make(folder: &Path, wanted: Wanted) -> Self {
        fs::create_dir_all(folder).unwrap();
        let fifo = |name: &str| {
            let path = folder.join(name);
            rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
            path
        };
        let stdin = wanted.stdin.then(|| {
            // Opened for both, since the shim opens its end later.
            let mut options = pipe::OpenOptions::new();
            options.read_write(true).open_sender(fifo("0")).unwrap()
        });
        let reader = |name, is_wanted| {
            if is_wanted && wanted.unread {
                Reader::ignore(&fifo(name))
            } else if is_wanted {
                Reader::follow(&fifo(name))
            } else {
                Reader::default()
            }
        };
        Self {
            stdin,
            stdout: reader("1", !wanted.silent),
            stderr: reader("2", !wanted.silent && !wanted.terminal),
            folder: folder.to_owned(),
            wanted,
        }
    }

    /// As containerd is told it: standard input, output and error; empty where there is none.
    pub(crate) fn paths(&self) -> [String; 3] {
        let path = |name: &str, is_wanted: bool| match is_wanted {
            true => self.folder.join(name).display().to_string(),
            false => String::new(),
        };
        let is_loud = !self.wanted.silent;
        [
            path("0", self.wanted.stdin),
            path("1", is_loud),
            path("2", is_loud && !self.wanted.terminal),
        ]
    }

    pub(crate) fn terminal(&self) -> bool {
        self.wanted.terminal
    }

    pub(crate) async fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is wanted");
        let write = stdin.write_all(text.as_bytes());
        time::timeout(DEADLINE, write)
            .await
            .expect("it reads")
            .unwrap();
    }

    /// Ends this side of standard input. A shim may hold the other one open until it is told.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until standard output has `wanted` in it.
    pub(crate) async fn read_until(&self, wanted: &str) -> String {
        let text = |seen: &Seen| String::from_utf8_lossy(&seen.bytes).into_owned();
        let kept = self.stdout.seen.as_ref().expect("it is not silent");
        let mut seen = kept.clone();
        let wait = seen.wait_for(|seen| text(seen).contains(wanted));
        match time::timeout(DEADLINE, wait).await {
            Ok(seen) => text(&seen.expect("output ended")),
            Err(_) => panic!("no {wanted:?} in {:?}", text(&kept.borrow())),
        }
    }

    /// All that was written, once both ends are closed.
    pub(crate) async fn finish(&mut self) -> (String, String) {
        (self.stdout.finish().await, self.stderr.finish().await)
    }
}

impl Reader {
    fn follow(path: &Path) -> Self {
        let mut pipe = pipe::OpenOptions::new().open_receiver(path).unwrap();
        let (tell, seen) = watch::channel(Seen::default());
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n) = pipe.read(&mut buffer).await {
                if n == 0 || tell.borrow().bytes.len() > CAP {
                    break;
                }
                tell.send_modify(|seen| seen.bytes.extend_from_slice(&buffer[..n]));
            }
            tell.send_modify(|seen| seen.is_closed = true);
        });
        Self {
            seen: Some(seen),
            task: Some(task),
            unread: None,
        }
    }

    fn ignore(path: &Path) -> Self {
        let pipe = pipe::OpenOptions::new().open_receiver(path).unwrap();
        Self {
            unread: Some(pipe),
            seen: None,
            task: None,
        }
    }

    async fn finish(&mut self) -> String {
        let Some(seen) = &mut self.seen else {
            return String::new();
        };
        let bytes = match time::timeout(DEADLINE, seen.wait_for(|seen| seen.is_closed)).await {
            Ok(seen) => seen.unwrap().bytes.clone(),
            Err(_) => panic!("output was not closed"),
        };
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
