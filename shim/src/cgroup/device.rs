//! Which devices a container may use: the spec's rules become one policy, and that becomes what the kernel takes.
//!
//! The rules are those of version 1's devices controller, which runc follows on version 2 as well: the last rule
//! for all devices says what holds by default, and the rules after it are exceptions.

pub(super) mod ebpf;
mod policy;
mod v1;
mod v2;

#[cfg(test)]
pub(super) use policy::Device;
pub(super) use policy::{Access, Kind, Policy, PolicyError};
pub(super) use v1::apply as apply_v1;
pub(super) use v2::apply as apply_v2;
