//! Which failure is which status and type, and the JSON that tells of it.

use std::panic::Location;

use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::params::ParamError;
use crate::{
    adapter::CreateError,
    api::reply::json,
    config,
    executor::{
        admission::Shortage,
        command::CommandError,
        execution::{Body, ExecuteError, Fault, StartError},
        setup::SetupError,
    },
};

/// A failure on its way to the client.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    /// A stable word: `type` on the wire.
    pub(super) kind: &'static str,
    pub(super) message: String,
    /// The causes, outermost first.
    pub(super) trace: Vec<String>,
    /// Whether production hides the message.
    pub(super) is_internal: bool,
    /// Where it was raised.
    location: &'static Location<'static>,
}

impl ApiError {
    #[track_caller]
    pub(super) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            trace: Vec::new(),
            is_internal: false,
            location: Location::caller(),
        }
    }

    /// Status 400 with type `execution_bad_request`.
    #[track_caller]
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "execution_bad_request", message)
    }

    /// Status 404 with type `runtime_not_found`.
    #[track_caller]
    pub(super) fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "runtime_not_found",
            "Runtime not found",
        )
    }

    /// Status 503 with type `general_overloaded`.
    #[track_caller]
    pub(super) fn overloaded() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "general_overloaded",
            "This node holds as many bodies as it may. Come back later.",
        )
    }

    /// What an instance's creation on its own ends with.
    #[track_caller]
    pub(super) fn create(error: &StartError) -> Self {
        let status = match error {
            StartError::Conflict { .. } => StatusCode::CONFLICT,
            StartError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            StartError::Deleted { .. } => StatusCode::NOT_FOUND,
            StartError::Setup { source, .. } => setup_status(source),
            StartError::NotAdmitted { source, .. } => shortage_status(source),
            StartError::Code { .. } | StartError::Sandbox { .. } | StartError::Exited { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::of_start(status, error)
    }

    /// What a creation with a build ends with: the end of its sandbox is that of its command.
    pub(super) fn build(error: &StartError) -> Self {
        match error {
            StartError::Deleted { .. } | StartError::Exited { .. } => Self {
                trace: chain(error),
                ..Self::new(StatusCode::BAD_REQUEST, "build_failed", error.to_string())
            },
            StartError::Conflict { .. }
            | StartError::Code { .. }
            | StartError::Sandbox { .. }
            | StartError::Setup { .. }
            | StartError::NotAdmitted { .. }
            | StartError::Stopping => Self::create(error),
        }
    }

    /// What a command in an instance ends with.
    pub(super) fn command(error: &CommandError) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let failed = "Failed to execute command.";
        let error_of = |kind, message| Self {
            trace: chain(error),
            ..Self::new(status, kind, message)
        };
        match error {
            CommandError::NotFound { .. } => Self::not_found(),
            CommandError::Timeout { .. } => {
                error_of("command_timeout", "Operation timed out.".into())
            }
            CommandError::Failed { exit, .. } => {
                error_of("command_failed", format!("{failed} It {exit}"))
            }
            CommandError::Run { source, .. } => {
                error_of("command_failed", format!("{failed} {source}"))
            }
        }
    }

    /// What an execution ends with. A start that failed within it is the request's fault (400) where the request
    /// brought what cannot be started.
    #[track_caller]
    pub(super) fn execute(error: &ExecuteError) -> Self {
        let (status, message) = match error {
            ExecuteError::Start(error) => return Self::of_start(cold_start_status(error), error),
            ExecuteError::NotFound { .. } => (
                StatusCode::NOT_FOUND,
                "Runtime not found. Please start it first or provide runtime-related parameters."
                    .into(),
            ),
            ExecuteError::Deleted { .. } => {
                (StatusCode::NOT_FOUND, "Runtime no longer exists.".into())
            }
            ExecuteError::StartTimeout { is_running, .. } => {
                let cause = if *is_running {
                    "It runs, but does not listen on port 3000."
                } else {
                    "It is still being started."
                };
                let message = format!("Timed out waiting for runtime. {cause}");
                (StatusCode::BAD_REQUEST, message)
            }
            ExecuteError::QueueFull { .. } => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            ExecuteError::Timeout { .. }
            | ExecuteError::Exited { .. }
            | ExecuteError::Broken { .. } => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
        Self {
            trace: chain(error),
            ..Self::new(status, error.kind(), message)
        }
    }

    #[track_caller]
    fn of_start(status: StatusCode, error: &StartError) -> Self {
        Self {
            trace: chain(error),
            is_internal: error.fault() == Fault::Host,
            ..Self::new(status, error.kind(), start_message(error))
        }
    }

    /// The answer. Details are told in development only, and so is the message of what failed within this machine.
    pub(super) fn response(&self, config: &config::Executor) -> Response<Body> {
        let is_hidden = self.is_internal && !config.is_development;
        let body = ErrorBody {
            kind: self.kind,
            message: if is_hidden {
                "Internal server error."
            } else {
                &self.message
            },
            code: self.status.as_u16(),
            version: &config.version,
            details: config.is_development.then_some(Details {
                file: self.location.file(),
                line: self.location.line(),
                trace: &self.trace,
            }),
        };
        let mut response = json(self.status, &body);
        let headers = response.headers_mut();
        let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
        set(header::CACHE_CONTROL, "no-cache, no-store, must-revalidate");
        set(header::EXPIRES, "0");
        set(header::PRAGMA, "no-cache");
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            set(header::RETRY_AFTER, "1");
        }
        if self.status == StatusCode::PAYLOAD_TOO_LARGE {
            set(header::CONNECTION, "close");
        }
        response
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    message: &'a str,
    code: u16,
    version: &'a str,
    #[serde(flatten)]
    details: Option<Details<'a>>,
}

/// What development tells on top: where the error was raised, and its causes, outermost first.
#[derive(Serialize)]
struct Details<'a> {
    file: &'a str,
    line: u32,
    trace: &'a [String],
}

impl From<ParamError> for ApiError {
    #[track_caller]
    fn from(error: ParamError) -> Self {
        match error {
            ParamError::Missing { .. } | ParamError::Invalid { .. } => Self::new(
                StatusCode::BAD_REQUEST,
                "general_unknown",
                error.to_string(),
            ),
            ParamError::Shape => Self::bad_request(error.to_string()),
        }
    }
}

/// An image, code or command that cannot be started is the request's, all else is the host's.
fn cold_start_status(error: &StartError) -> StatusCode {
    match error {
        StartError::Conflict { .. } => StatusCode::CONFLICT,
        StartError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        StartError::Deleted { .. } => StatusCode::NOT_FOUND,
        StartError::Setup { source, .. } => setup_status(source),
        StartError::NotAdmitted { source, .. } => shortage_status(source),
        StartError::Exited { .. } => StatusCode::BAD_REQUEST,
        StartError::Code { source, .. } if source.is_missing() => StatusCode::BAD_REQUEST,
        StartError::Code { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        StartError::Sandbox { source, .. } => match source {
            CreateError::Image { .. } | CreateError::Command { .. } => StatusCode::BAD_REQUEST,
            CreateError::Absent { .. }
            | CreateError::Class { .. }
            | CreateError::Exists { .. }
            | CreateError::Prepare { .. }
            | CreateError::Engine { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

/// What does not fit now may fit later.
fn shortage_status(shortage: &Shortage) -> StatusCode {
    match shortage {
        Shortage::TooLarge { .. } => StatusCode::BAD_REQUEST,
        Shortage::Memory { .. } | Shortage::Pressure { .. } | Shortage::Queue { .. } => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

fn setup_status(error: &SetupError) -> StatusCode {
    match error {
        SetupError::Failed { .. } | SetupError::Timeout { .. } | SetupError::Run { .. } => {
            StatusCode::BAD_REQUEST
        }
        SetupError::Artifact { .. } | SetupError::Store { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        SetupError::QueueFull { .. } => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// A caller is told the cause too where it can be mended by the caller.
fn start_message(error: &StartError) -> String {
    match error {
        StartError::Conflict {
            is_pending: true, ..
        } => {
            "A runtime with the same ID is already being created. Attempt a execution soon.".into()
        }
        StartError::Conflict { .. } => "Runtime already exists ".into(),
        StartError::Code { source, .. } => format!("{error}: {source}"),
        StartError::Sandbox { .. } if error.fault() == Fault::Caller => chain(error).join(": "),
        StartError::Setup { source, .. } => chain(source).join(": "),
        StartError::NotAdmitted { .. } => chain(error).join(": "),
        StartError::Deleted { .. } => "Runtime no longer exists.".into(),
        StartError::Sandbox { .. } | StartError::Exited { .. } | StartError::Stopping => {
            error.to_string()
        }
    }
}

fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect()
}

#[cfg(test)]
mod tests;
