//! Where the shim of a group listens.

use core::fmt::Write;

use alloc::string::String;
use sha2::{Digest, Sha256};

/// None: paths that are joined otherwise than by a slash.
///
/// Source: `socket_address` of the crate containerd-shim, which `bootstrap` uses; a test there compares both.
pub(crate) fn of(containerd: &str, namespace: &str, group: &str) -> Option<String> {
    let is_joined = |before: &str, after: &str| {
        !before.is_empty() && !before.ends_with('/') && !after.is_empty() && !after.starts_with('/')
    };
    if !is_joined(containerd, namespace) || !is_joined(namespace, group) {
        return None;
    }
    let mut hash = Sha256::new();
    for part in [containerd, "/", namespace, "/", group] {
        hash.update(part);
    }
    let mut address = String::from("unix:///run/containerd/s/");
    for byte in hash.finalize() {
        write!(address, "{byte:02x}").ok()?;
    }
    Some(address)
}
