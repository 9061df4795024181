//! cgroups of classes and sandboxes: `/<namespace>/<class>/<sandbox>`, version 2, 1 or both mounted.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use cgroups_rs::fs::{Cgroup, hierarchies};

use super::Memory;
use crate::config::Class;

mod class;

/// A cgroup is busy for a moment after its last process has ended.
const BUSY_RETRIES: u32 = 50;

/// Makes the cgroup of a class, or gives it and the sandboxes in it new limits. Answers which of them this kernel lacks.
pub(super) fn set_class(path: &str, class: &Class) -> io::Result<Vec<&'static str>> {
    let relative = path.trim_start_matches('/');
    let group = Cgroup::new(hierarchies::auto(), relative).map_err(io::Error::other)?;
    let roots = mounts();
    let find = |name: &str| {
        let mut files = roots.iter().map(|root| root.join(relative).join(name));
        files.find(|file| file.exists())
    };
    let read = |name: &str| find(name).and_then(|file| fs::read_to_string(file).ok());
    let mut values = class::values(class, group.v2());
    values.extend(class::io_values(&class.io_max, group.v2(), &|name| {
        read(name).unwrap_or_default()
    })?);
    let mut lacking = Vec::new();
    let mut refused = Vec::new();
    for value in &values {
        match value.file.and_then(find) {
            Some(file) if fs::write(&file, &value.text).is_err() => refused.push((file, value)),
            Some(_) => {}
            None if value.is_asked && !lacking.contains(&value.key) => lacking.push(value.key),
            None => {}
        }
    }
    // Limits that bound one another are refused until the other is set: memory and swap of version 1 are.
    // A default that cannot be set is there anyway.
    for (file, value) in refused.into_iter().filter(|(_, value)| value.is_asked) {
        fs::write(file, &value.text).map_err(|error| {
            let told = format!("{} = {}: {error}", value.key, value.text);
            io::Error::new(error.kind(), told)
        })?;
    }
    for sandbox in children(path) {
        for file in roots
            .iter()
            .map(|root| root.join(relative).join(&sandbox).join("pids.max"))
        {
            write_where_known(&file, &class.pids_max.to_string())?;
        }
    }
    Ok(lacking)
}

/// What the kernel says of a class: its limits and what it uses, by file. Those of version 1 under their own names.
pub(super) fn values(path: &str) -> BTreeMap<String, String> {
    const FILES: [&str; 16] = [
        "cpu.weight",
        "cpu.max",
        "memory.max",
        "memory.high",
        "memory.min",
        "memory.swap.max",
        "memory.current",
        "io.weight",
        "io.max",
        "pids.current",
        "cpu.shares",
        "cpu.cfs_quota_us",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.pressure",
        "cpu.pressure",
    ];
    let path = path.trim_start_matches('/');
    let roots = mounts();
    let read = |name: &&str| {
        let text = roots
            .iter()
            .find_map(|root| fs::read_to_string(root.join(path).join(name)).ok())?;
        Some(((*name).to_owned(), text.trim().replace('\n', "; ")))
    };
    FILES.iter().filter_map(read).collect()
}

/// Removes a cgroup. Succeeds where there is none.
pub(super) fn remove(path: &str) -> io::Result<()> {
    let path = path.trim_start_matches('/');
    mounts()
        .iter()
        .try_for_each(|root| remove_dir(&root.join(path)))
}

/// Whether the kernel has killed a process of this cgroup for want of memory.
///
/// Source: `oom_kill` of `memory.events` (cgroup-v2.rst) and of `memory.oom_control` (Linux 4.13).
pub(super) fn has_run_out_of_memory(path: &str) -> bool {
    let path = path.trim_start_matches('/');
    mounts()
        .iter()
        .flat_map(|root| {
            ["memory.events", "memory.oom_control"].map(|name| root.join(path).join(name))
        })
        .filter_map(|file| fs::read_to_string(file).ok())
        .any(|text| {
            let mut counts = text
                .lines()
                .filter_map(|line| line.strip_prefix("oom_kill "));
            counts.any(|count| count.trim() != "0")
        })
}

/// Processor time of this cgroup; none where nobody counts it.
///
/// Source: `usage_usec` of `cpu.stat` (cgroup-v2.rst), `cpuacct.usage` in nanoseconds (cgroup-v1/cpuacct.rst).
pub(super) fn cpu_time(path: &str) -> Option<Duration> {
    let path = path.trim_start_matches('/');
    mounts().iter().find_map(|root| {
        let read = |name: &str| fs::read_to_string(root.join(path).join(name)).ok();
        if let Some(nanos) = read("cpuacct.usage") {
            return Some(Duration::from_nanos(nanos.trim().parse().ok()?));
        }
        let stat = read("cpu.stat")?;
        let micros = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        Some(Duration::from_micros(micros?.trim().parse().ok()?))
    })
}

/// Memory of this cgroup; none where nobody counts it.
///
/// Source: cgroup-v2.rst, cgroup-v1/memory.rst; the limit of version 1 is a huge number where there is none.
pub(super) fn memory(path: &str) -> Option<Memory> {
    let path = path.trim_start_matches('/');
    let roots = mounts();
    let read = |names: &[&str]| {
        let files = roots
            .iter()
            .flat_map(|root| names.iter().map(|name| root.join(path).join(name)));
        files
            .into_iter()
            .find_map(|file| fs::read_to_string(file).ok())
    };
    let number = |text: String| text.trim().parse::<u64>().ok();
    let limit = read(&["memory.max", "memory.limit_in_bytes"]).and_then(number);
    Some(Memory {
        used: read(&["memory.current", "memory.usage_in_bytes"]).and_then(number)?,
        limit: limit.filter(|bytes| *bytes < 1 << 60),
        pressure: read(&["memory.pressure"]).and_then(|text| pressure(&text)),
    })
}

/// Of lines as `some avg10=0.12 avg60=...`, the first number of the first.
///
/// Source: psi.rst.
fn pressure(text: &str) -> Option<f64> {
    let some = text
        .lines()
        .find_map(|line| line.strip_prefix("some avg10="))?;
    some.split(' ').next()?.parse().ok()
}

/// The names of the cgroups right under `path`.
pub(super) fn children(path: &str) -> Vec<String> {
    let path = path.trim_start_matches('/');
    let mut names: Vec<_> = mounts()
        .iter()
        .filter_map(|root| fs::read_dir(root.join(path)).ok())
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.dedup();
    names
}

fn remove_dir(path: &Path) -> io::Result<()> {
    for _ in 0..BUSY_RETRIES {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
        thread::sleep(Duration::from_millis(2));
    }
    fs::remove_dir(path)
}

fn write_where_known(path: &Path, value: &str) -> io::Result<()> {
    if path.exists() {
        fs::write(path, value)
    } else {
        Ok(())
    }
}

/// Where cgroup file systems are mounted: one with version 2, one for each controller with version 1.
fn mounts() -> Vec<PathBuf> {
    mounts_in(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// A line is `id parent device root target options [tag...] - type source options`.
///
/// Source: proc_pid_mountinfo(5).
fn mounts_in(mountinfo: &str) -> Vec<PathBuf> {
    let target = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let is_cgroup = matches!(kind.split(' ').next()?, "cgroup" | "cgroup2");
        is_cgroup.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    };
    mountinfo.lines().filter_map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_that_of_the_last_ten_seconds() {
        let text = "some avg10=1.25 avg60=0.40 avg300=0.10 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(pressure(text), Some(1.25));
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn knows_the_mounts_of_both_versions() {
        #[track_caller]
        fn check(mountinfo: &str, expected: &[&str]) {
            let found = mounts_in(mountinfo);
            assert_eq!(
                found,
                expected.iter().map(PathBuf::from).collect::<Vec<_>>()
            );
        }
        let tmpfs = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n";
        let pids = "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        check(
            &[tmpfs, pids, unified].concat(),
            &["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"],
        );
        let alone = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        check(alone, &["/sys/fs/cgroup"]);
    }
}
