//! cgroups of classes and sandboxes: `/<namespace>/<class>/<sandbox>`, version 2, 1 or both mounted.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use cgroups_rs::fs::{Cgroup, cpu::CpuController, hierarchies, memory::MemController};

use crate::config::Class;

/// Microseconds; the kernel's own default.
const PERIOD: u64 = 100_000;
/// A cgroup is busy for a moment after its last process has ended.
const BUSY_RETRIES: u32 = 50;
const MIB: u64 = 1024 * 1024;

/// Makes the cgroup of a class, or gives it new limits.
pub(super) fn set_class(path: &str, class: &Class) -> io::Result<()> {
    let path = path.trim_start_matches('/');
    let group = Cgroup::new(hierarchies::auto(), path).map_err(io::Error::other)?;
    if let Some(cpu) = group.controller_of::<CpuController>() {
        // Version 1 counts in shares, 1,024 where version 2 has a weight of 100.
        let shares = if group.v2() {
            class.cpu_weight
        } else {
            (class.cpu_weight * 1024 / 100).max(2)
        };
        cpu.set_shares(shares).map_err(io::Error::other)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a float becomes the nearest i64"
        )]
        let quota = class
            .cpu_max
            .map_or(-1, |cores| (cores * PERIOD as f64) as i64);
        cpu.set_cfs_quota_and_period(Some(quota), Some(PERIOD))
            .map_err(io::Error::other)?;
    }
    if let Some(memory) = group.controller_of::<MemController>() {
        let bytes = |mib: u64| i64::try_from(mib.saturating_mul(MIB)).unwrap_or(i64::MAX);
        memory
            .set_limit(class.memory_max_mib.map_or(-1, bytes))
            .map_err(io::Error::other)?;
    }
    for root in mounts() {
        let write =
            |name: &str, value: String| write_where_known(&root.join(path).join(name), &value);
        let high = class
            .memory_high_mib
            .map_or("max".to_owned(), |mib| (mib * MIB).to_string());
        write("memory.high", high)?;
        // The controller may be off or have no scheduler behind it: a share is a wish.
        let _ = write("io.weight", class.io_weight.to_string());
    }
    Ok(())
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
