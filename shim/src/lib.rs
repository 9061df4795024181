//! `containerd-shim-opr-v1`: a containerd runtime v2 shim that makes OCI containers itself and serves many from
//! one process.
//!
//! ```text
//! bootstrap ──▶ announce ──▶ service ──▶ task ──▶ stdio, launch ──▶ plan
//!                 serve ─────────┘         └───▶ cgroup, events, reaper
//! ```

extern crate alloc;

pub mod bootstrap;
pub mod cgroup;
pub mod events;
pub mod launch;
pub mod log;
pub mod reaper;
pub mod serve;
pub mod service;
pub mod socket;
pub mod stdio;
pub mod task;

mod announce;
#[cfg(fuzzing)]
pub mod fuzz;
mod plan;
mod program;
mod sys;
