//! The programs behind networks and disks: fed, bounded in time, and quoted when they fail.

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// A plugin, iptables or mke2fs ends within this, also on a busy machine; it is killed then.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// Runs `command` with `input`, both smaller than a pipe, and answers what it prints.
///
/// It and all that it started are gone when this returns.
pub(super) fn run(command: &mut Command, input: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(named)?;
    let fed = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input))
        .or_else(|error| match error.kind() {
            // It ended without a look at its input: its exit code says whether that is right.
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        });
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.expect("the kernel's process ids are positive");
    let has_ended = pidfd_open(pid, PidfdFlags::empty())
        .map_err(io::Error::from)
        .and_then(|process| is_readable(&process, limit));
    // Not waited for yet, so the group's number is not another's.
    let _ = kill_process_group(pid, Signal::KILL);
    let output = child.wait_with_output()?;
    if !has_ended.map_err(named)? {
        let message = format!("{name}: it was killed after {limit:?}");
        return Err(io::Error::new(io::ErrorKind::TimedOut, message));
    }
    if output.status.success() {
        return fed.map(|()| output.stdout).map_err(named);
    }
    // CNI plugins tell their failure on standard output.
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    Err(io::Error::other(format!("{name}: {}", said.trim())))
}

fn is_readable(process: &impl std::os::fd::AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    Ok(poll(&mut polled, Some(&limit))? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> io::Result<Vec<u8>> {
        run(Command::new("sh").args(["-c", script]), b"fed", limit)
    }

    #[test]
    fn answers_what_a_program_prints_and_quotes_it_when_it_fails() {
        assert_eq!(sh("cat", LIMIT).unwrap(), b"fed");
        let error = sh("echo out; echo err >&2; exit 3", LIMIT).unwrap_err();
        assert_eq!(error.to_string(), "sh: err\nout");
    }

    #[test]
    fn kills_what_takes_too_long_with_its_children() {
        let began = std::time::Instant::now();
        let error = sh("sleep 100 & sleep 100", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        sh("sleep 100 &", LIMIT).unwrap();
        assert!(began.elapsed() < LIMIT);
    }
}
