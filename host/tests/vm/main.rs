//! A whole Debian under QEMU with the package installed: systemd, cgroup version 2, no root after the installation.
//! `scripts/vm` makes what this needs and runs it.

#![expect(clippy::unwrap_used, reason = "a failed step fails its test")]

mod install;
mod isolation;
mod limits;
mod machine;
mod operation;
mod power;
