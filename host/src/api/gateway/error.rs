//! Why a request has no answer of the function's, as its client is told.
//!
//! The client is anybody: it learns whose fault it was, and nothing of the function's output or of this machine.

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::{
    api::reply,
    executor::execution::{Body, ExecuteError, Fault, StartError},
};

/// A failure on its way to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GatewayError {
    /// No function of that name.
    NotFound,
    /// The function is there, but what its instances are made of is not.
    Lookup,
    /// The request asks for a web socket.
    Upgrade,
    /// The function answered with a status that is no answer.
    Informational,
    /// The execution failed.
    Execution {
        status: StatusCode,
        kind: &'static str,
    },
}

impl From<&ExecuteError> for GatewayError {
    fn from(error: &ExecuteError) -> Self {
        let status = match error {
            ExecuteError::NotFound { .. } => StatusCode::NOT_FOUND,
            ExecuteError::Deleted { .. } | ExecuteError::QueueFull { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ExecuteError::Start(error) => start_status(error),
            ExecuteError::StartTimeout { .. } | ExecuteError::Timeout { .. } => {
                StatusCode::GATEWAY_TIMEOUT
            }
            ExecuteError::Exited { .. } | ExecuteError::Broken { .. } => StatusCode::BAD_GATEWAY,
        };
        let kind = error.kind();
        Self::Execution { status, kind }
    }
}

/// A function that cannot be started is broken; a host that cannot start it may be able to later.
fn start_status(error: &StartError) -> StatusCode {
    match (error, error.fault()) {
        (StartError::Conflict { .. }, _) | (_, Fault::Host | Fault::Load) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        (_, Fault::Caller | Fault::Function) => StatusCode::BAD_GATEWAY,
    }
}

impl GatewayError {
    fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Lookup => StatusCode::SERVICE_UNAVAILABLE,
            Self::Upgrade => StatusCode::NOT_IMPLEMENTED,
            Self::Informational => StatusCode::BAD_GATEWAY,
            Self::Execution { status, .. } => status,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::NotFound => "function_not_found",
            Self::Lookup => "host_failed",
            Self::Upgrade => "general_not_implemented",
            Self::Informational => "execution_broken",
            Self::Execution { kind, .. } => kind,
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::NotFound => "There is no such function.",
            Self::Upgrade => "Web sockets are not supported.",
            Self::Lookup | Self::Informational | Self::Execution { .. } => match self.status() {
                StatusCode::NOT_FOUND => "There is no such function.",
                StatusCode::GATEWAY_TIMEOUT => "The function did not answer in time.",
                StatusCode::BAD_GATEWAY => "The function failed to answer.",
                _ => "The function cannot be executed now. Try again.",
            },
        }
    }

    /// `{"type":"execution_timeout","message":"…","code":504}`
    pub(super) fn response(self) -> Response<Body> {
        let (status, kind, message) = (self.status(), self.kind(), self.message());
        let body = json!({"type": kind, "message": message, "code": status.as_u16()});
        let mut response = reply::json(status, &body);
        let headers = response.headers_mut();
        let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
        set(header::CACHE_CONTROL, "no-store");
        if status == StatusCode::SERVICE_UNAVAILABLE {
            set(header::RETRY_AFTER, "1");
        }
        response
    }
}
