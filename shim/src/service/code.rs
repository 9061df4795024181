//! Which gRPC code a failure becomes.

use std::error::Error;

use containerd_shim::protos::ttrpc::{self, Code, get_status};
use log::{debug, warn};

use crate::{launch::LaunchError, stdio::StdioError, task::TaskError};

/// The answer to containerd; the log gets what containerd's caller cannot have caused.
pub(super) fn answer(what: &str, id: &str, error: &TaskError) -> ttrpc::Error {
    let (code, text) = (code(error), chain(error));
    match code {
        Code::UNKNOWN => warn!("{what} {id}: {text}"),
        _ => debug!("{what} {id}: {text}"),
    }
    ttrpc::Error::RpcStatus(get_status(code, text))
}

/// Source: the codes of containerd's runc shim. What it has no code for is unknown there and here.
fn code(error: &TaskError) -> Code {
    match error {
        TaskError::NoContainer(_) | TaskError::NoProcess(_) | TaskError::Finished => {
            Code::NOT_FOUND
        }
        TaskError::Exists(_) => Code::ALREADY_EXISTS,
        TaskError::NotStarted | TaskError::Step(_) => Code::FAILED_PRECONDITION,
        TaskError::Invalid { .. }
        | TaskError::Launch(LaunchError::Spec(_))
        | TaskError::Stdio(StdioError::Address { .. }) => Code::INVALID_ARGUMENT,
        TaskError::Unsupported(_) => Code::UNIMPLEMENTED,
        TaskError::Launch(LaunchError::Program { .. } | LaunchError::Step { .. })
        | TaskError::Stdio(
            StdioError::Open { .. } | StdioError::Pipe(_) | StdioError::Logger { .. },
        )
        | TaskError::Cgroup { .. }
        | TaskError::Bundle { .. }
        | TaskError::Kernel { .. }
        | TaskError::Broken => Code::UNKNOWN,
    }
}

/// The error with all its causes.
fn chain(error: &TaskError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{
        launch::SpecError,
        task::{State, Step},
    };

    #[track_caller]
    fn check(error: TaskError, expected_code: Code, expected_text: &str) {
        let ttrpc::Error::RpcStatus(status) = answer("test", "c1", &error) else {
            panic!("an answer is a status");
        };
        assert_eq!(status.code(), expected_code);
        assert_eq!(status.message(), expected_text);
    }

    #[test]
    fn each_failure_has_its_code_and_text() {
        check(
            TaskError::NoContainer("c1".to_owned()),
            Code::NOT_FOUND,
            "container c1 not created",
        );
        check(
            TaskError::NoProcess("e1".to_owned()),
            Code::NOT_FOUND,
            "process e1 does not exist",
        );
        check(
            TaskError::Finished,
            Code::NOT_FOUND,
            "process already finished",
        );
        check(
            TaskError::Exists("container c1".to_owned()),
            Code::ALREADY_EXISTS,
            "container c1 already exists",
        );
        check(
            TaskError::NotStarted,
            Code::FAILED_PRECONDITION,
            "process not created",
        );
        let error = State::Running.after(Step::Delete).unwrap_err();
        check(
            error.into(),
            Code::FAILED_PRECONDITION,
            "cannot delete a running process",
        );
        check(
            TaskError::Invalid {
                field: "signal",
                reason: "a number from 0 to 64 is accepted".to_owned(),
            },
            Code::INVALID_ARGUMENT,
            "signal: a number from 0 to 64 is accepted",
        );
        check(
            TaskError::Unsupported("checkpoint"),
            Code::UNIMPLEMENTED,
            "checkpoint is not implemented",
        );
    }

    #[test]
    fn what_the_kernel_or_a_program_did_is_unknown() {
        check(
            LaunchError::Program {
                program: "nope".to_owned(),
                reason: "executable file not found in $PATH".to_owned(),
            }
            .into(),
            Code::UNKNOWN,
            "exec: \"nope\": executable file not found in $PATH",
        );
        check(
            LaunchError::Step {
                step: "mount proc at /proc".to_owned(),
                source: io::ErrorKind::PermissionDenied.into(),
            }
            .into(),
            Code::UNKNOWN,
            "mount proc at /proc: permission denied",
        );
        check(
            LaunchError::Spec(SpecError {
                field: "linux.namespaces".to_owned(),
                reason: "pid is there twice".to_owned(),
            })
            .into(),
            Code::INVALID_ARGUMENT,
            "linux.namespaces: pid is there twice",
        );
        check(
            TaskError::Kernel {
                what: "send the signal",
                source: io::ErrorKind::PermissionDenied.into(),
            },
            Code::UNKNOWN,
            "cannot send the signal: permission denied",
        );
    }
}
