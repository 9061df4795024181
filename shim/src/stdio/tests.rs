//! Real pipes, FIFOs, files, terminals and loggers.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::libc;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat},
    pty::{OpenptFlags, openpt, ptsname, unlockpt},
};
use tempfile::TempDir;

use super::*;
use crate::reaper::Reaper;

const OWNER: Owner<'static> = Owner {
    id: "c1",
    namespace: "tests",
    ids: (0, 0),
};
const SOON: Duration = Duration::from_secs(10);

struct Fifos {
    folder: TempDir,
}

impl Fifos {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["in", "out", "err"] {
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, folder.path().join(name), FileType::Fifo, mode, 0).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self) -> StdioConfig {
        let text = |name| self.path(name).to_str().unwrap().to_owned();
        StdioConfig {
            stdin: text("in"),
            stdout: text("out"),
            stderr: text("err"),
            terminal: false,
        }
    }

    /// Opened without waiting for the other side, and read with waiting.
    fn reader(&self, name: &str) -> File {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.path(name))
            .unwrap();
        rustix::io::ioctl_fionbio(&file, false).unwrap();
        file
    }
}

async fn open(config: &StdioConfig) -> ([File; 3], Io) {
    let launch = Reaper::default().launch();
    let (stdio, streams) = Streams::open(config, OWNER, &launch).await.unwrap();
    let ProcessStdio::Streams(ends) = stdio else {
        panic!("there is no terminal");
    };
    (ends.map(File::from), streams.run(None).unwrap())
}

async fn text(mut from: File) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    });
    tokio::time::timeout(SOON, read).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_reaches_its_fifo_and_ends_with_the_process() {
    let fifos = Fifos::new();
    let (ends, io) = open(&fifos.config()).await;
    let (out, err) = (fifos.reader("out"), fifos.reader("err"));
    let [stdin, mut stdout, mut stderr] = ends;
    stdout.write_all(b"to out").unwrap();
    stderr.write_all(b"to err").unwrap();
    drop((stdin, stdout, stderr));
    io.drain(SOON).await;
    assert_eq!(text(out).await, "to out");
    assert_eq!(text(err).await, "to err");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_output_is_whole_for_a_slow_reader() {
    let fifos = Fifos::new();
    let (ends, io) = open(&fifos.config()).await;
    let mut out = fifos.reader("out");
    let [_, mut stdout, _] = ends;
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let expected = bytes.clone();
    let writer = tokio::task::spawn_blocking(move || stdout.write_all(&bytes).unwrap());
    let reader = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        let mut part = vec![0; 100_001];
        loop {
            match out.read(&mut part).unwrap() {
                0 => return all,
                n => all.extend_from_slice(&part[..n]),
            }
            if all.len() < 500_000 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    writer.await.unwrap();
    io.drain(SOON).await;
    assert!(reader.await.unwrap() == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_loses_nothing_for_the_next() {
    let fifos = Fifos::new();
    let (ends, io) = open(&fifos.config()).await;
    let [stdin, mut stdout, stderr] = ends;
    let mut first = fifos.reader("out");
    stdout.write_all(b"one").unwrap();
    let mut three = [0; 3];
    first.read_exact(&mut three).unwrap();
    drop(first);
    stdout.write_all(b"two").unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let second = fifos.reader("out");
    drop((stdin, stdout, stderr));
    io.drain(SOON).await;
    assert_eq!(text(second).await, "two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_ends_after_it_is_closed_here_and_by_the_client() {
    let fifos = Fifos::new();
    let (ends, io) = open(&fifos.config()).await;
    let [stdin, ..] = ends;
    let client = || {
        OpenOptions::new()
            .write(true)
            .open(fifos.path("in"))
            .unwrap()
    };
    client().write_all(b"first ").unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut second = client();
    io.close_stdin();
    io.close_stdin();
    second.write_all(b"second").unwrap();
    drop(second);
    assert_eq!(text(stdin).await, "first second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_holds_only_itself() {
    let (slow, fast) = (Fifos::new(), Fifos::new());
    let (slow_ends, slow_io) = open(&slow.config()).await;
    let (fast_ends, fast_io) = open(&fast.config()).await;
    let _slow_reader = slow.reader("out");
    let fast_reader = fast.reader("out");
    let [_, mut stdout, _] = slow_ends;
    rustix::io::ioctl_fionbio(&stdout, true).unwrap();
    let mut n = 0;
    let end = tokio::time::Instant::now() + Duration::from_millis(200);
    while tokio::time::Instant::now() < end {
        match stdout.write(&[0; 4096]) {
            Ok(more) => n += more,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    assert!(n <= 2 << 20, "{n} bytes were taken");
    let [_, mut stdout, _] = fast_ends;
    stdout.write_all(b"fast").unwrap();
    drop(stdout);
    fast_io.drain(Duration::from_millis(100)).await;
    assert_eq!(text(fast_reader).await, "fast");
    let begin = std::time::Instant::now();
    slow_io.drain(Duration::from_millis(100)).await;
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_appended_to_and_their_folders_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logs/c1.log");
    for word in ["one ", "two "] {
        let address = format!("file://{}", path.display());
        let (ends, io) = open(&StdioConfig {
            stdout: address.clone(),
            stderr: address,
            ..StdioConfig::default()
        })
        .await;
        let [mut stdin, mut stdout, mut stderr] = ends;
        assert_eq!(stdin.read(&mut [0; 8]).unwrap(), 0);
        stdout.write_all(word.as_bytes()).unwrap();
        drop(stdout);
        tokio::time::sleep(Duration::from_millis(50)).await;
        stderr.write_all(word.as_bytes()).unwrap();
        drop(stderr);
        io.drain(SOON).await;
    }
    assert_eq!(fs::read_to_string(path).unwrap(), "one one two two ");
}

fn script(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("logger");
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o755)
        .open(&path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logger_gets_both_streams_and_who_it_logs() {
    // As the daemon does: what started the tests may have left some open.
    crate::sys::close_on_exec_from(3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let text = "#!/bin/sh\nexec 5>&-\nexec >\"$2\" 2>&1\necho $1 $CONTAINER_ID $CONTAINER_NAMESPACE $(env | wc -l)\n\
                readlink /proc/$$/fd/* | grep -c pipe:\ncat <&3\ncat <&4\necho done\n";
    let program = script(folder.path(), text);
    let (ends, io) = open(&StdioConfig {
        stdout: format!("binary://{}?path={}", program.display(), log.display()),
        ..StdioConfig::default()
    })
    .await;
    let [stdin, mut stdout, mut stderr] = ends;
    stdout.write_all(b"to out\n").unwrap();
    stderr.write_all(b"to err\n").unwrap();
    drop((stdin, stdout, stderr));
    io.drain(SOON).await;
    let end = std::time::Instant::now() + SOON;
    let mut text = String::new();
    while !text.ends_with("done\n") {
        assert!(std::time::Instant::now() < end, "the log is {text:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
        text = fs::read_to_string(&log).unwrap_or_default();
    }
    // A shell adds PWD to the environment. Of all pipes it has the two that it reads.
    assert_eq!(text, "path c1 tests 3\n2\nto out\nto err\ndone\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logger_that_is_not_there_is_an_error() {
    let launch = Reaper::default().launch();
    let config = StdioConfig {
        stdout: "binary:///nowhere/logger".to_owned(),
        ..StdioConfig::default()
    };
    let error = Streams::open(&config, OWNER, &launch).await.unwrap_err();
    assert_eq!(error.to_string(), "logger /nowhere/logger");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refuses_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let launch = Reaper::default().launch();
    let folder = folder.path().to_str().unwrap().to_owned();
    for (stdout, expected) in [
        (
            "http://x".to_owned(),
            "stdio \"http://x\": the scheme is none of fifo, file, binary",
        ),
        ("out".to_owned(), "stdio \"out\": the path is not absolute"),
        (
            "file://out".to_owned(),
            "stdio \"out\": the path is not absolute",
        ),
        ("/dev/null".to_owned(), "stdio \"/dev/null\": it is no FIFO"),
        (
            format!("{folder}/none"),
            &format!("cannot open stdio {folder}/none"),
        ),
    ] {
        let config = StdioConfig {
            stdout,
            ..StdioConfig::default()
        };
        let error = Streams::open(&config, OWNER, &launch).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_fed_read_resized_and_hung_up() {
    let fifos = Fifos::new();
    let mut config = fifos.config();
    config.terminal = true;
    config.stderr = String::new();
    let launch = Reaper::default().launch();
    let (stdio, streams) = Streams::open(&config, OWNER, &launch).await.unwrap();
    assert!(matches!(stdio, ProcessStdio::Terminal));
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let slave = rustix::fs::open(path.as_c_str(), flags, Mode::empty()).unwrap();
    let io = streams.run(Some(master)).unwrap();
    let mut out = fifos.reader("out");
    let mut client = OpenOptions::new()
        .write(true)
        .open(fifos.path("in"))
        .unwrap();
    io.resize(80, 25).unwrap();
    let size = rustix::termios::tcgetwinsize(&slave).unwrap();
    assert_eq!((size.ws_col, size.ws_row), (80, 25));
    client.write_all(b"hello\n").unwrap();
    let mut slave = File::from(slave);
    let (slave, line) = tokio::task::spawn_blocking(move || {
        let mut line = [0; 6];
        slave.read_exact(&mut line).unwrap();
        slave.write_all(b"world\n").unwrap();
        (slave, line)
    })
    .await
    .unwrap();
    assert_eq!(&line, b"hello\n");
    drop(slave);
    io.drain(SOON).await;
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\r\nworld\r\n");
}
