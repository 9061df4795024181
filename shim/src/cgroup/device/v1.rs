//! Device rules by version 1's controller: lines written to `devices.deny` and `devices.allow`.

use std::path::Path;

use super::{Policy, policy::Change};
use crate::cgroup::{CgroupError, folder};

/// Gives the cgroup at `path` this policy, by the fewest writes.
pub(in crate::cgroup) fn apply(path: &Path, target: &Policy) -> Result<(), CgroupError> {
    let list = folder::read(path, "devices.list")?;
    let current = Policy::of_list(&list)?;
    let changes = current.changes_to(target);
    // The order of the writes matters where a default is set, so that one file stays open only while its run
    // of changes lasts.
    for run in changes.chunk_by(|a, b| a.is_allow == b.is_allow) {
        write(path, run)?;
    }
    Ok(())
}

fn write(path: &Path, changes: &[Change]) -> Result<(), CgroupError> {
    let name = match changes[0].is_allow {
        true => "devices.allow",
        false => "devices.deny",
    };
    let lines = changes.iter().map(Change::to_string);
    folder::write_each(path, name, lines).map_err(|source| CgroupError::Write {
        field: "linux.resources.devices".to_owned(),
        file: path.join(name),
        source,
    })
}
