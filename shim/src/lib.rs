//! `containerd-shim-opr-v1`: a containerd runtime v2 shim that makes OCI containers itself and serves many from
//! one process.
//!
//! ```text
//! bootstrap ──▶ serve ──▶ service ──▶ task ──▶ stdio, launch ──▶ plan
//!                                      └───▶ cgroup, events, reaper
//! ```

pub mod cgroup;
pub mod events;
pub mod launch;
pub mod log;
pub mod reaper;
pub mod stdio;
pub mod task;

mod plan;
mod sys;
