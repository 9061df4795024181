//! The server of the Open Runtimes v5 protocol.

mod execution;
mod http;
mod logger;
mod native;
mod request;
mod response;
mod serve;
mod settings;

pub use execution::Function;
pub use serve::serve;
pub use settings::Settings;
