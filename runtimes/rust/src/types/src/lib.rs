//! What functions are written against.

mod context;
mod request;
mod response;

pub use context::{Context, LogMessage, Logger};
pub use request::ContextRequest;
pub use response::{ContextResponse, Response};
