//! A program that keeps the output: `binary://program?argument=value`.
//!
//! It reads standard output from descriptor 3 and standard error from 4, and closes 5 when it is ready. Its
//! environment is `CONTAINER_ID` and `CONTAINER_NAMESPACE`, nothing else.
//!
//! Source: containerd's `docs/remote` of runtime v2, section "Logging".

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use rustix::{
    io::fcntl_dupfd_cloexec,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::io::Interest;

use super::{Owner, StdioError};
use crate::reaper::{Launch, watch};

/// How long a logger may take until it says that it is ready.
const READY: Duration = Duration::from_secs(10);

/// Starts the logger and waits until it is ready. It ends by itself when its pipes end.
pub(super) async fn start(
    uri: &str,
    owner: Owner<'_>,
    pipes: (OwnedFd, OwnedFd),
    launch: &Launch,
) -> Result<(), StdioError> {
    let command = Command::parse(uri, owner).ok_or_else(|| StdioError::Address {
        uri: uri.to_owned(),
        reason: "it names no program, or holds a zero byte",
    })?;
    let failed = |source: io::Error| StdioError::Logger {
        program: command.program.to_string_lossy().into_owned(),
        source,
    };
    let (ready, ready_write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let pid = command
        .spawn([&pipes.0, &pipes.1, &ready_write])
        .map_err(failed)?;
    drop((pipes, ready_write));
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
    let child = launch.made(pid.as_raw_nonzero().get().cast_unsigned());
    let pidfd = Arc::new(pidfd);
    tokio::spawn(child.wait(pidfd.clone()));
    let answer = tokio::time::timeout(READY, closes(ready)).await;
    let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if answer.is_err() {
        // It fails only where the logger has ended already.
        let _ = pidfd_send_signal(&*pidfd, Signal::KILL);
    }
    answer.map_err(failed)
}

/// A byte or the end of the pipe says that the logger is ready.
async fn closes(ready: OwnedFd) -> io::Result<()> {
    let ready = watch(ready, Interest::READABLE)?;
    let _ = ready.readable().await?;
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Command {
    program: CString,
    arguments: Vec<CString>,
    environment: [CString; 2],
}

impl Command {
    fn parse(uri: &str, owner: Owner<'_>) -> Option<Self> {
        let rest = uri.strip_prefix("binary://")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let program = decode(path, false)?;
        if !program.as_bytes().starts_with(b"/") {
            return None;
        }
        let mut arguments = vec![program.clone()];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            arguments.push(decode(name, true)?);
            arguments.push(decode(value, true)?);
        }
        let environment = [
            CString::new(format!("CONTAINER_ID={}", owner.id)).ok()?,
            CString::new(format!("CONTAINER_NAMESPACE={}", owner.namespace)).ok()?,
        ];
        Some(Self {
            program,
            arguments,
            environment,
        })
    }

    /// The descriptors become 3, 4 and 5. They are copied above those first, so that none is overwritten by another.
    fn spawn(&self, descriptors: [&OwnedFd; 3]) -> io::Result<Pid> {
        let mut actions = PosixSpawnFileActions::init()?;
        let mut copies = Vec::new();
        for (number, descriptor) in (3..).zip(descriptors) {
            let copy = fcntl_dupfd_cloexec(descriptor, 6)?;
            actions.add_dup2(copy.as_raw_fd(), number)?;
            copies.push(copy);
        }
        let mut attributes = PosixSpawnAttr::init()?;
        let mut defaults = nix::sys::signal::SigSet::empty();
        defaults.add(nix::sys::signal::Signal::SIGPIPE);
        attributes.set_sigdefault(&defaults)?;
        attributes.set_flags(nix::spawn::PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF)?;
        let pid = posix_spawn(
            self.program.as_c_str(),
            &actions,
            &attributes,
            &self.arguments,
            &self.environment,
        )?;
        Pid::from_raw(pid.as_raw()).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Undoes the percent signs, and in a query the plus signs.
///
/// Source: RFC 3986 section 2.1.
fn decode(text: &str, is_query: bool) -> Option<CString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if is_query => b' ',
            byte => byte,
        });
    }
    CString::new(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner<'static> = Owner {
        id: "c1",
        namespace: "tests",
        ids: (0, 0),
    };

    #[track_caller]
    fn check(uri: &str, expected: Option<&[&str]>) {
        let command = Command::parse(uri, OWNER);
        let arguments: Option<Vec<_>> = command.map(|command| {
            let texts = command.arguments.into_iter();
            texts.map(|text| text.into_string().unwrap()).collect()
        });
        assert_eq!(
            arguments.as_deref(),
            expected
                .map(|e| e.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
                .as_deref()
        );
    }

    #[test]
    fn reads_the_program_and_its_arguments() {
        check("binary:///bin/cat", Some(&["/bin/cat"]));
        check(
            "binary:///opt/my%20logger?_NERDCTL=%2Fvar%2Flib&x=a+b",
            Some(&["/opt/my logger", "_NERDCTL", "/var/lib", "x", "a b"]),
        );
        check("binary:///bin/cat?flag", Some(&["/bin/cat", "flag", ""]));
        check("binary://cat", None);
        check("binary:///bin/%zz", None);
        check("binary:///bin/%00", None);
        check("file:///x", None);
    }
}
