//! What went wrong in a process that is not the shim's: told over its control channel.

use std::{borrow::Cow, io};

use serde::{Deserialize, Serialize};

use super::LaunchError;

/// A step that failed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// As in "mount proc at /proc".
    pub(super) step: Cow<'static, str>,
    /// None: `reason` is all.
    errno: Option<i32>,
    reason: String,
    /// Whether the program is at fault and not the way to it; `step` is its name then.
    is_program: bool,
}

impl Failure {
    pub(super) fn new(step: impl Into<Cow<'static, str>>, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        Self {
            step: step.into(),
            errno: error.raw_os_error(),
            reason: error.to_string(),
            is_program: false,
        }
    }

    pub(super) fn program(name: &str, reason: &str) -> Self {
        Self {
            step: name.to_owned().into(),
            errno: None,
            reason: reason.to_owned(),
            is_program: true,
        }
    }
}

impl From<Failure> for LaunchError {
    fn from(failure: Failure) -> Self {
        if failure.is_program {
            return Self::Program {
                program: failure.step.into(),
                reason: failure.reason,
            };
        }
        let source = failure.errno.map_or_else(
            || io::Error::other(failure.reason),
            io::Error::from_raw_os_error,
        );
        Self::Step {
            step: failure.step.into(),
            source,
        }
    }
}

/// Names the step that an error happened in.
pub(super) trait Step<T> {
    fn step(self, name: &'static str) -> Result<T, Failure>;
    fn step_with(self, name: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, name: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(name, error))
    }

    fn step_with(self, name: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(name(), error))
    }
}
