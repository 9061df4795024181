//! The shim under a real containerd, side by side with runc's: the same container in both, compared by what is seen
//! from inside, by containerd's client and on the host. Needs root, containerd, runc and a static busybox.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where it finds what it does not expect"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a table of cases is as long as there are cases"
)]

#[path = "harness.rs"]
mod harness;

mod announced;
mod ends;
mod exceptions;
mod exec;
mod hostile;
mod kernel;
mod lifecycle;
mod limits;
mod lives;
mod mounts;
mod process;
mod same;
mod start;
mod terminal;

use harness::{container, inside, node, rootfs, spec, stdio, task, traces};
