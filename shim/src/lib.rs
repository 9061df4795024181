//! `containerd-shim-opr-v1`: a containerd runtime v2 shim that makes OCI containers itself and serves many from
//! one process.
//!
//! ```text
//! bootstrap ──▶ serve ──▶ service ──▶ task ──▶ stdio, launch ──▶ plan
//!                                      └───▶ cgroup, events, reaper
//! ```

pub mod cgroup;
pub mod launch;

mod plan;
mod sys;
