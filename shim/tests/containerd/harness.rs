//! A real containerd with its containers: what the tests and the benchmark share.

pub(crate) mod container;
pub(crate) mod events;
pub(crate) mod inside;
pub(crate) mod node;
pub(crate) mod rootfs;
pub(crate) mod spec;
pub(crate) mod stdio;
pub(crate) mod task;
pub(crate) mod traces;
