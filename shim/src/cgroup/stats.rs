//! What a container uses, in containerd's messages.

mod v1;
mod v2;

use std::{path::Path, str::FromStr};

use containerd_shim::protos::protobuf::{MessageFull, well_known_types::any::Any};

use super::{Cgroup, CgroupError, folder};

/// containerd's clients know the version by the message's name: that of version 1 where it has a hierarchy.
pub(super) fn collect(cgroup: &Cgroup) -> Result<Any, CgroupError> {
    match (&cgroup.unified, cgroup.v1.is_empty()) {
        (Some(path), true) => pack(&v2::metrics(path)?),
        (Some(_) | None, _) => pack(&v1::metrics(cgroup)?),
    }
}

/// The name has no `type.googleapis.com/` before it, as in containerd's own messages.
fn pack<M: MessageFull>(message: &M) -> Result<Any, CgroupError> {
    let value = message
        .write_to_bytes()
        .map_err(|error| CgroupError::Read {
            path: M::descriptor().full_name().into(),
            source: std::io::Error::other(error),
        })?;
    Ok(Any {
        type_url: M::descriptor().full_name().to_owned(),
        value,
        ..Any::default()
    })
}

/// A file with one number; `max` is the largest. Nothing where there is no such file.
fn number(path: &Path, file: &str) -> Result<Option<u64>, CgroupError> {
    let Some(text) = folder::read_if_any(path, file)? else {
        return Ok(None);
    };
    match text.trim() {
        "max" => Ok(Some(u64::MAX)),
        text => parse(path, file, text).map(Some),
    }
}

fn parse<T: FromStr>(path: &Path, file: &str, text: &str) -> Result<T, CgroupError> {
    text.parse().map_err(|_| CgroupError::Read {
        path: path.join(file),
        source: std::io::Error::other(format!("{text:?} is no number")),
    })
}

/// Lines of a name and a number each.
struct Table(String);

impl Table {
    /// Nothing where there is no such file.
    fn read(path: &Path, file: &str) -> Result<Option<Self>, CgroupError> {
        Ok(folder::read_if_any(path, file)?.map(Self))
    }

    /// Calls `each` with all that are numbers.
    fn each(&self, mut each: impl FnMut(&str, u64)) {
        for line in self.0.lines() {
            if let Some((name, value)) = line.split_once(' ')
                && let Ok(value) = value.trim().parse()
            {
                each(name, value);
            }
        }
    }
}

/// Lines as in `mlx4_0 hca_handle=2 hca_object=max`; the numbers of each device.
fn rdma(path: &Path, file: &str) -> Result<Vec<(String, u32, u32)>, CgroupError> {
    let text = folder::read_if_any(path, file)?.unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (mut handles, mut objects) = (0, 0);
        let device = words.next()?.to_owned();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(u32::MAX);
            match key {
                "hca_handle" => handles = value,
                "hca_object" => objects = value,
                _ => {}
            }
        }
        Some((device, handles, objects))
    });
    Ok(lines.collect())
}

/// The sizes of huge pages that a folder has files for, as in `2MB`.
fn page_sizes(path: &Path, end: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    let mut sizes: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(end)?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort();
    sizes
}
