//! Which namespaces a container has: new ones, joined ones, and the host's.

use std::{collections::BTreeSet, os::fd::OwnedFd, path::Path};

use nix::libc;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

use super::SpecError;

/// Namespaces of a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct NamespacePlan {
    /// `CLONE_NEW*` of those that are new. The cgroup's is made by the process itself, once it is in its cgroup.
    pub(crate) new: i32,
    /// Those that are joined; the user namespace is last.
    pub(crate) joined: Vec<Joined>,
    /// Of a new user namespace.
    pub(crate) id_maps: Option<IdMaps>,
    /// As `/proc/self/timens_offsets` takes them.
    pub(crate) time_offsets: String,
}

/// A namespace that exists, or those of a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// `CLONE_NEW*`: one, or of a process those that are joined.
    pub(crate) kind: i32,
    pub(crate) descriptor: usize,
}

/// As `/proc/<pid>/uid_map` and `gid_map` take them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMaps {
    pub(crate) uids: String,
    pub(crate) gids: String,
}

impl NamespacePlan {
    /// Whether the container has a namespace of this kind that is not the host's.
    pub(crate) fn has(&self, kind: i32) -> bool {
        self.new & kind != 0 || self.joined.iter().any(|joined| joined.kind & kind != 0)
    }

    /// All kinds that are not the host's, as `CLONE_NEW*`.
    pub(crate) fn all(&self) -> i32 {
        self.joined
            .iter()
            .fold(self.new, |all, joined| all | joined.kind)
    }
}

/// Namespaces of a spec. `keep` takes the descriptors of those that are joined, and answers their places.
pub(crate) fn namespaces(
    spec: &Spec,
    mut keep: impl FnMut(OwnedFd) -> usize,
) -> Result<NamespacePlan, SpecError> {
    const FIELD: &str = "linux.namespaces";
    let nothing = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&nothing);
    let mut plan = NamespacePlan::default();
    let mut seen = BTreeSet::new();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = clone_flag(namespace.typ());
        if !seen.insert(kind) {
            let reason = format!("{} is there twice", namespace.typ());
            return Err(SpecError::new(FIELD, reason));
        }
        match namespace
            .path()
            .as_deref()
            .filter(|path| *path != Path::new(""))
        {
            None => plan.new |= kind,
            Some(path) => {
                let descriptor = keep(open(path, kind)?);
                plan.joined.push(Joined { kind, descriptor });
            }
        }
    }
    // The rights over the others may be those of the host.
    plan.joined
        .sort_by_key(|joined| joined.kind == libc::CLONE_NEWUSER);
    if plan.new & libc::CLONE_NEWNS == 0 {
        let reason =
            "a container has to have a mount namespace of its own: add {\"type\": \"mount\"}";
        return Err(SpecError::new(FIELD, reason));
    }
    plan.id_maps = own_id_maps(linux, &plan)?;
    plan.time_offsets = time_offsets(linux, &plan)?;
    for (name, value, kind) in [
        ("hostname", spec.hostname(), libc::CLONE_NEWUTS),
        ("domainname", spec.domainname(), libc::CLONE_NEWUTS),
    ] {
        if value.as_ref().is_some_and(|value| !value.is_empty()) && !plan.has(kind) {
            let reason = "the container has no UTS namespace of its own to set it in";
            return Err(SpecError::new(name, reason));
        }
    }
    Ok(plan)
}

fn clone_flag(kind: LinuxNamespaceType) -> i32 {
    match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::Time => 0x80,
    }
}

fn open(path: &Path, kind: i32) -> Result<OwnedFd, SpecError> {
    let wrong = |reason: String| {
        SpecError::new("linux.namespaces", format!("{}: {reason}", path.display()))
    };
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    match crate::sys::namespace_kind(std::os::fd::AsFd::as_fd(&file)) {
        Ok(found) if found == kind => Ok(file.into()),
        Ok(_) => Err(wrong("a namespace of another type".into())),
        Err(_) => Err(wrong("no namespace".into())),
    }
}

fn own_id_maps(linux: &Linux, plan: &NamespacePlan) -> Result<Option<IdMaps>, SpecError> {
    let is_new = plan.new & libc::CLONE_NEWUSER != 0;
    let (uids, gids) = (linux.uid_mappings(), linux.gid_mappings());
    let is_empty = |mappings: &Option<Vec<_>>| mappings.as_ref().is_none_or(Vec::is_empty);
    for (field, mappings) in [("linux.uidMappings", uids), ("linux.gidMappings", gids)] {
        if !plan.has(libc::CLONE_NEWUSER) && !is_empty(mappings) {
            let reason = "the container has no user namespace of its own";
            return Err(SpecError::new(field, reason));
        }
        if is_new && is_empty(mappings) {
            return Err(SpecError::new(
                field,
                "a new user namespace has to have some",
            ));
        }
    }
    let maps = || {
        IdMaps::new(
            uids.as_deref().unwrap_or_default(),
            gids.as_deref().unwrap_or_default(),
        )
    };
    is_new.then(maps).transpose()
}

/// Lines that the kernel takes of a map of ids. Source: user_namespaces(7).
const MAX_MAPPINGS: usize = 340;

impl IdMaps {
    /// Of a mount, or of a container.
    pub(crate) fn new(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<Self, SpecError> {
        for (field, mappings) in [("uidMappings", uids), ("gidMappings", gids)] {
            if mappings.len() > MAX_MAPPINGS {
                let reason = format!("{} are too many: at most {MAX_MAPPINGS}", mappings.len());
                return Err(SpecError::new(field, reason));
            }
        }
        Ok(Self {
            uids: id_map(uids),
            gids: id_map(gids),
        })
    }
}

fn id_map(mappings: &[LinuxIdMapping]) -> String {
    let line = |mapping: &LinuxIdMapping| {
        let (inside, outside) = (mapping.container_id(), mapping.host_id());
        format!("{inside} {outside} {}\n", mapping.size())
    };
    mappings.iter().map(line).collect()
}

fn time_offsets(linux: &Linux, plan: &NamespacePlan) -> Result<String, SpecError> {
    const FIELD: &str = "linux.timeOffsets";
    let mut lines = String::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        if plan.new & clone_flag(LinuxNamespaceType::Time) == 0 {
            return Err(SpecError::new(
                FIELD,
                "the container has no new time namespace",
            ));
        }
        if clock != "monotonic" && clock != "boottime" {
            let reason = format!("{clock:?} is neither monotonic nor boottime");
            return Err(SpecError::new(FIELD, reason));
        }
        let (secs, nanos) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        lines += &format!("{clock} {secs} {nanos}\n");
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxIdMappingBuilder;

    use super::*;

    #[test]
    fn as_many_mappings_as_the_kernel_takes_and_no_more() {
        let mapping = LinuxIdMappingBuilder::default()
            .size(1_u32)
            .build()
            .unwrap();
        let many = |n| vec![mapping; n];
        let maps = IdMaps::new(&many(1), &many(MAX_MAPPINGS)).unwrap();
        assert_eq!(maps.gids.lines().count(), MAX_MAPPINGS);
        let error = IdMaps::new(&many(1), &many(MAX_MAPPINGS + 1)).unwrap_err();
        assert!(
            error.to_string().contains("gidMappings: 341 are too many"),
            "{error}"
        );
    }
}
