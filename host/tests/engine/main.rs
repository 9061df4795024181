//! The adapter against a real containerd: needs root, containerd, runc, CNI plugins and a static busybox.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where it finds what it does not expect"
)]

mod adapter;
mod containerd;
mod files;
mod image;
mod leaks;
mod limits;
mod network;
mod node;
#[path = "../support/number.rs"]
mod number;
mod process;
mod remove;
mod traces;
