//! `io.containerd.cgroups.v2.Metrics`: version 2's files, all in one folder.

use std::path::Path;

use containerd_shim::protos::{
    cgroups_v2::metrics::{
        CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData,
        PSIStats, PidsStat, RdmaEntry, RdmaStat,
    },
    protobuf::MessageField,
};

use super::{Table, number, page_sizes, parse, rdma};
use crate::cgroup::{CgroupError, folder};

/// Reads what the controllers have that are passed down to this cgroup.
pub(super) fn metrics(path: &Path) -> Result<Metrics, CgroupError> {
    let mut metrics = Metrics {
        cpu: MessageField::some(cpu(path)?),
        hugetlb: hugepages(path)?,
        ..Metrics::default()
    };
    if let Some(current) = number(path, "pids.current")? {
        // As in containerd, no limit is the largest number here.
        metrics.pids = MessageField::some(PidsStat {
            current,
            limit: number(path, "pids.max")?.unwrap_or(0),
            ..PidsStat::default()
        });
    }
    if let Some(usage) = number(path, "memory.current")? {
        metrics.memory = MessageField::some(memory(path, usage)?);
        metrics.memory_events = MessageField::some(memory_events(path)?);
    }
    if let Some(text) = folder::read_if_any(path, "io.stat")? {
        metrics.io = MessageField::some(IOStat {
            usage: io(path, &text)?,
            psi: pressure(path, "io.pressure")?,
            ..IOStat::default()
        });
    }
    let (current, limit) = (rdma(path, "rdma.current")?, rdma(path, "rdma.max")?);
    if !current.is_empty() || !limit.is_empty() {
        metrics.rdma = MessageField::some(RdmaStat {
            current: current.into_iter().map(rdma_entry).collect(),
            limit: limit.into_iter().map(rdma_entry).collect(),
            ..RdmaStat::default()
        });
    }
    Ok(metrics)
}

/// Times are in microseconds.
fn cpu(path: &Path) -> Result<CPUStat, CgroupError> {
    let mut stat = CPUStat {
        psi: pressure(path, "cpu.pressure")?,
        ..CPUStat::default()
    };
    if let Some(table) = Table::read(path, "cpu.stat")? {
        table.each(|name, value| match name {
            "usage_usec" => stat.usage_usec = value,
            "user_usec" => stat.user_usec = value,
            "system_usec" => stat.system_usec = value,
            "nr_periods" => stat.nr_periods = value,
            "nr_throttled" => stat.nr_throttled = value,
            "throttled_usec" => stat.throttled_usec = value,
            "nr_bursts" => stat.nr_bursts = value,
            "burst_usec" => stat.burst_usec = value,
            _ => {}
        });
    }
    Ok(stat)
}

fn memory(path: &Path, usage: u64) -> Result<MemoryStat, CgroupError> {
    let number = |file| Ok::<_, CgroupError>(number(path, file)?.unwrap_or(0));
    let mut stat = MemoryStat {
        usage,
        usage_limit: number("memory.max")?,
        max_usage: number("memory.peak")?,
        swap_usage: number("memory.swap.current")?,
        swap_limit: number("memory.swap.max")?,
        swap_max_usage: number("memory.swap.peak")?,
        psi: pressure(path, "memory.pressure")?,
        ..MemoryStat::default()
    };
    if let Some(table) = Table::read(path, "memory.stat")? {
        table.each(|name, value| set_memory(&mut stat, name, value));
    }
    Ok(stat)
}

fn set_memory(stat: &mut MemoryStat, name: &str, value: u64) {
    match name {
        "anon" => stat.anon = value,
        "file" => stat.file = value,
        "kernel_stack" => stat.kernel_stack = value,
        "slab" => stat.slab = value,
        "sock" => stat.sock = value,
        "shmem" => stat.shmem = value,
        "file_mapped" => stat.file_mapped = value,
        "file_dirty" => stat.file_dirty = value,
        "file_writeback" => stat.file_writeback = value,
        "anon_thp" => stat.anon_thp = value,
        "inactive_anon" => stat.inactive_anon = value,
        "active_anon" => stat.active_anon = value,
        "inactive_file" => stat.inactive_file = value,
        "active_file" => stat.active_file = value,
        "unevictable" => stat.unevictable = value,
        "slab_reclaimable" => stat.slab_reclaimable = value,
        "slab_unreclaimable" => stat.slab_unreclaimable = value,
        "pgfault" => stat.pgfault = value,
        "pgmajfault" => stat.pgmajfault = value,
        // Counted apart for both kinds from Linux 5.9 on.
        "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file" => {
            stat.workingset_refault += value;
        }
        "workingset_activate" | "workingset_activate_anon" | "workingset_activate_file" => {
            stat.workingset_activate += value;
        }
        "workingset_nodereclaim" => stat.workingset_nodereclaim = value,
        "pgrefill" => stat.pgrefill = value,
        "pgscan" => stat.pgscan = value,
        "pgsteal" => stat.pgsteal = value,
        "pgactivate" => stat.pgactivate = value,
        "pgdeactivate" => stat.pgdeactivate = value,
        "pglazyfree" => stat.pglazyfree = value,
        "pglazyfreed" => stat.pglazyfreed = value,
        "thp_fault_alloc" => stat.thp_fault_alloc = value,
        "thp_collapse_alloc" => stat.thp_collapse_alloc = value,
        _ => {}
    }
}

fn memory_events(path: &Path) -> Result<MemoryEvents, CgroupError> {
    let mut events = MemoryEvents::default();
    if let Some(table) = Table::read(path, "memory.events")? {
        table.each(|name, value| match name {
            "low" => events.low = value,
            "high" => events.high = value,
            "max" => events.max = value,
            "oom" => events.oom = value,
            "oom_kill" => events.oom_kill = value,
            "oom_group_kill" => events.oom_group_kill = value,
            _ => {}
        });
    }
    Ok(events)
}

/// Lines as in `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io(path: &Path, text: &str) -> Result<Vec<IOEntry>, CgroupError> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|word| word.split_once(':')) else {
            continue;
        };
        let mut entry = IOEntry {
            major: parse(path, "io.stat", major)?,
            minor: parse(path, "io.stat", minor)?,
            ..IOEntry::default()
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let target = match key {
                "rbytes" => &mut entry.rbytes,
                "wbytes" => &mut entry.wbytes,
                "rios" => &mut entry.rios,
                "wios" => &mut entry.wios,
                _ => continue,
            };
            *target = parse(path, "io.stat", value)?;
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Lines as in `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`. Nothing where the kernel does not count it.
fn pressure(path: &Path, file: &str) -> Result<MessageField<PSIStats>, CgroupError> {
    let text = match folder::read_if_any(path, file) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(MessageField::none()),
        // Switched off by the kernel's command line.
        Err(CgroupError::Read { source, .. }) if source.raw_os_error() == Some(OFF) => {
            return Ok(MessageField::none());
        }
        Err(error) => return Err(error),
    };
    let mut stats = PSIStats::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let kind = words.next();
        let mut data = PSIData::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => data.avg10 = parse(path, file, value)?,
                "avg60" => data.avg60 = parse(path, file, value)?,
                "avg300" => data.avg300 = parse(path, file, value)?,
                "total" => data.total = parse(path, file, value)?,
                _ => {}
            }
        }
        match kind {
            Some("some") => stats.some = MessageField::some(data),
            Some("full") => stats.full = MessageField::some(data),
            Some(_) | None => {}
        }
    }
    Ok(MessageField::some(stats))
}

/// What pressure files say when it is not counted.
const OFF: i32 = rustix::io::Errno::OPNOTSUPP.raw_os_error();

fn hugepages(path: &Path) -> Result<Vec<HugeTlbStat>, CgroupError> {
    let read = |size: String| {
        let mut n_failures = 0;
        if let Some(table) = Table::read(path, &format!("hugetlb.{size}.events"))? {
            table.each(|name, value| {
                if name == "max" {
                    n_failures = value;
                }
            });
        }
        Ok(HugeTlbStat {
            current: number(path, &format!("hugetlb.{size}.current"))?.unwrap_or(0),
            max: number(path, &format!("hugetlb.{size}.max"))?.unwrap_or(0),
            failcnt: n_failures,
            pagesize: size,
            ..HugeTlbStat::default()
        })
    };
    page_sizes(path, ".current").into_iter().map(read).collect()
}

fn rdma_entry((device, hca_handles, hca_objects): (String, u32, u32)) -> RdmaEntry {
    RdmaEntry {
        device,
        hca_handles,
        hca_objects,
        ..RdmaEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use expect_test::expect;

    use super::*;

    #[test]
    fn files_of_version_2_become_one_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for (name, text) in [
            (
                "cpu.stat",
                "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_bursts 1\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n",
            ),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("memory.swap.max", "max\n"),
            (
                "memory.stat",
                "anon 1\nworkingset_refault_anon 2\nworkingset_refault_file 3\n",
            ),
            ("memory.events", "low 0\nmax 5\noom 1\noom_kill 1\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n252:1 \n",
            ),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
            ("rdma.max", "mlx4_0 hca_handle=2 hca_object=max\n"),
        ] {
            fs::write(path.join(name), text).unwrap();
        }
        let text = metrics(path).unwrap().to_string().replace("} ", "}\n");
        expect![[r#"
            pids {current: 2 limit: 18446744073709551615}
            cpu {usage_usec: 7 user_usec: 4 system_usec: 3 psi {some {avg10: 1.5 total: 9}}
            nr_bursts: 1}
            memory {anon: 1 workingset_refault: 5 usage: 4096 usage_limit: 8192 swap_limit: 18446744073709551615}
            rdma {current {device: "mlx4_0" hca_handles: 2 hca_objects: 2000}
            limit {device: "mlx4_0" hca_handles: 2 hca_objects: 4294967295}}
            io {usage {major: 8 rbytes: 1 wbytes: 2 rios: 3 wios: 4}
            usage {major: 252 minor: 1}}
            hugetlb {max: 18446744073709551615 pagesize: "2MB"}
            memory_events {max: 5 oom: 1 oom_kill: 1}"#]].assert_eq(&text);
        fs::write(path.join("io.stat"), "8:0 rbytes=x\n").unwrap();
        assert!(metrics(path).is_err());
    }
}
