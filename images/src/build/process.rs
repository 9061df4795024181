//! Other programs: run, told line by line, and ended with the task that waits for them.

use std::{collections::VecDeque, io, process::Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    sync::mpsc,
};

use super::BuildError;
use crate::progress::Progress;

/// A longer line is told in pieces.
const MAX_LINE: usize = 4096;
/// How many of the last lines an error shows.
const TAIL: usize = 15;

/// Runs a program to its end; its lines, of output and of errors, go to `progress`.
pub(crate) async fn run(
    program: &str,
    arguments: &[String],
    environment: &[(&str, &str)],
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let failed = |source| BuildError::Run {
        program: program.to_owned(),
        source,
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied());
    let mut group = Group::spawn(command).map_err(failed)?;
    let (sender, mut lines) = mpsc::channel(64);
    let (out, err) = (group.child.stdout.take(), group.child.stderr.take());
    let read = async {
        let errors = sender.clone();
        tokio::join!(read_lines(out, sender), read_lines(err, errors));
    };
    let mut tail = VecDeque::with_capacity(TAIL);
    let tell = async {
        while let Some(line) = lines.recv().await {
            progress.line(&line);
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(line);
        }
    };
    tokio::join!(read, tell);
    let status = group.child.wait().await.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let first = arguments.iter().find(|word| !word.starts_with(['-', '/']));
    Err(BuildError::Failed {
        command: first.map_or(program.to_owned(), |word| format!("{program} {word}")),
        status: status.to_string(),
        tail: Vec::from(tail).join("\n"),
    })
}

/// Whether a program is there and succeeds; what it prints is not shown.
pub(crate) async fn quiet(program: &str, arguments: &[String]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
        .kill_on_drop(true)
        .status()
        .await
        .is_ok_and(|status| status.success())
}

/// What a program prints, if it succeeds.
pub(crate) async fn capture(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command
        .output()
        .await
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program in a process group of its own, which is killed when this is dropped before its end.
struct Group {
    child: Child,
}

impl Group {
    fn spawn(mut command: Command) -> io::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        Ok(Self { child })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // `id` is there only while the child has not been waited for, so it is not another's.
        let id = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = id {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Sends lines, also those that end in a carriage return as progress bars do.
async fn read_lines(stream: Option<impl AsyncRead + Unpin>, lines: mpsc::Sender<String>) {
    let Some(mut stream) = stream else { return };
    let (mut line, mut piece) = (Vec::new(), [0; 8192]);
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        for byte in &piece[..count] {
            let is_end = matches!(byte, b'\n' | b'\r');
            if !is_end {
                line.push(*byte);
            }
            if (is_end && !line.is_empty()) || line.len() >= MAX_LINE {
                send(&mut line, &lines).await;
            }
        }
    }
    if !line.is_empty() {
        send(&mut line, &lines).await;
    }
}

async fn send(line: &mut Vec<u8>, lines: &mpsc::Sender<String>) {
    let text = String::from_utf8_lossy(line).trim_end().to_owned();
    line.clear();
    let _ = lines.send(text).await;
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use super::*;
    use crate::progress::LayerState;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Progress for Lines {
        fn layer(&self, _digest: &str, _state: LayerState) {}
        fn line(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
    }

    fn shell(script: &str) -> Vec<String> {
        vec!["-c".to_owned(), script.to_owned()]
    }

    #[tokio::test]
    async fn lines_are_told_as_they_come() {
        let lines = Lines::default();
        let script = shell("printf 'a\\nb\\rc\\n\\nd'; head -c 5000 /dev/zero | tr '\\0' x");
        run("sh", &script, &[], &lines).await.unwrap();
        let lines = lines.0.into_inner().unwrap();
        assert_eq!(lines[..3], ["a", "b", "c"]);
        assert_eq!(
            lines[3..].iter().map(String::len).collect::<Vec<_>>(),
            [4096, 905]
        );
    }

    #[tokio::test]
    async fn a_failure_shows_the_last_lines() {
        let error = run("sh", &shell("seq 100 >&2; exit 3"), &[], &())
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("(exit status: 3)") && text.ends_with("99\n100"),
            "{text}"
        );
        assert!(!text.contains("\n85\n"), "{text}");
    }

    #[tokio::test]
    async fn giving_up_ends_the_whole_family() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = shell(&format!("sleep 1000 & echo $! > {}; wait", file.display()));
        let running = run("sh", &script, &[], &());
        assert!(
            tokio::time::timeout(Duration::from_millis(300), running)
                .await
                .is_err()
        );
        let pid = std::fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..200 {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the child of the child lives on");
    }
}
