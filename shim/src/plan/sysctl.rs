//! Kernel parameters: those that belong to a namespace of the container, and no others.

use nix::libc;
use oci_spec::runtime::Spec;

use super::{NamespacePlan, SpecError};

/// File below `/proc/sys` and value of each.
pub(crate) fn sysctls(
    spec: &Spec,
    namespaces: &NamespacePlan,
) -> Result<Vec<(String, String)>, SpecError> {
    let own = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.sysctl().as_ref());
    let mut found = Vec::new();
    for (name, value) in own.into_iter().flatten() {
        // Either way of writing; a name with slashes may have dots in its parts, as interfaces do.
        let separator = name.chars().find(|c| matches!(c, '/' | '.'));
        let path = if separator == Some('/') {
            name.clone()
        } else {
            name.chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    c => c,
                })
                .collect()
        };
        let wrong = |reason: &str| SpecError::new("linux.sysctl", format!("{name}: {reason}"));
        let kind = namespace_of(&path).ok_or_else(|| wrong("is of the whole machine"))?;
        if !namespaces.has(kind) {
            return Err(wrong("the container shares this namespace with the host"));
        }
        if path == "kernel/hostname" {
            return Err(wrong("use the field hostname"));
        }
        found.push((path, value.clone()));
    }
    found.sort();
    Ok(found)
}

/// The kind of namespace that a parameter belongs to.
///
/// Source: namespaces(7), ipc_namespaces(7); Linux, `ipc/ipc_sysctl.c`, `ipc/mq_sysctl.c`.
fn namespace_of(path: &str) -> Option<i32> {
    const IPC: [&str; 8] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    ];
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return None;
    }
    match path {
        _ if IPC.contains(&path) || path.starts_with("fs/mqueue/") => Some(libc::CLONE_NEWIPC),
        _ if path.starts_with("net/") => Some(libc::CLONE_NEWNET),
        "kernel/domainname" | "kernel/hostname" => Some(libc::CLONE_NEWUTS),
        _ if path.starts_with("user/") => Some(libc::CLONE_NEWUSER),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_belong_to_namespaces() {
        for (path, expected) in [
            ("net/ipv4/ip_forward", Some(libc::CLONE_NEWNET)),
            ("kernel/shmmax", Some(libc::CLONE_NEWIPC)),
            ("fs/mqueue/msg_max", Some(libc::CLONE_NEWIPC)),
            ("kernel/domainname", Some(libc::CLONE_NEWUTS)),
            ("kernel/core_pattern", None),
            ("net/../kernel/core_pattern", None),
            ("net//x", None),
            ("vm/swappiness", None),
        ] {
            assert_eq!(namespace_of(path), expected, "{path}");
        }
    }
}
