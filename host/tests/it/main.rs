//! Tests of the host as a library, without root and without containerd.

#![expect(clippy::unwrap_used, reason = "a failed step fails its test")]

mod architecture;
mod builds;
mod executor;
mod init;
mod settings;
