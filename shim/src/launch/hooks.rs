//! Programs that a spec has run beside its container's, with the container's state on standard input.

use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::plan::{HookPlan, SpecError};

/// What a hook that failed wrote, as far as the error shows it. Bytes.
const SHOWN: usize = 1024;

/// The hooks of one kind.
pub(crate) fn plan(kind: &str, hooks: Option<&Vec<Hook>>) -> Result<Vec<HookPlan>, SpecError> {
    let one = |hook: &Hook| {
        let wrong = |reason: &str| {
            let path = hook.path().display();
            SpecError::new(format!("hooks.{kind}"), format!("{path}: {reason}"))
        };
        if !hook.path().is_absolute() {
            return Err(wrong("is not absolute"));
        }
        let timeout_s = match hook.timeout() {
            None => 0,
            Some(seconds @ 1..) => seconds.cast_unsigned(),
            Some(_) => return Err(wrong("has a timeout that is not above 0")),
        };
        Ok(HookPlan {
            path: hook.path().clone(),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone().unwrap_or_default(),
            timeout_s,
        })
    };
    hooks.into_iter().flatten().map(one).collect()
}

/// Runs one hook to its end.
///
/// # Errors
/// It cannot be started, fails, or is not done in time; it is ended then.
pub(crate) fn run(hook: &HookPlan, state: &str) -> io::Result<()> {
    let mut command = Command::new(&hook.path);
    let mut args = hook.args.iter();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear();
    command.envs(hook.env.iter().filter_map(|line| line.split_once('=')));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let ended = follow(&mut child, state, hook.timeout_s);
    if ended.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let words = ended?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words);
    Err(io::Error::other(format!("{status}: {}", words.trim())))
}

/// Feeds a hook its state and reads what it complains of, until it closes its standard error.
fn follow(child: &mut Child, state: &str, timeout_s: u64) -> io::Result<Vec<u8>> {
    let deadline = (timeout_s > 0).then(|| Instant::now() + Duration::from_secs(timeout_s));
    if let Some(mut input) = child.stdin.take() {
        // A hook that does not read is no failure: the state fits into a pipe.
        let _ = input.write_all(state.as_bytes());
    }
    let mut errors = child.stderr.take().expect("it is piped");
    let (mut words, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut ready = [PollFd::from_borrowed_fd(errors.as_fd(), PollFlags::IN)];
        if poll(&mut ready, timeout.as_ref())? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it was not done in time",
            ));
        }
        let n = errors.read(&mut buffer)?;
        if n == 0 {
            return Ok(words);
        }
        let room = SHOWN.saturating_sub(words.len());
        words.extend_from_slice(&buffer[..n.min(room)]);
    }
}
