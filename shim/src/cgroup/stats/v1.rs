//! `io.containerd.cgroups.v1.Metrics`: version 1's files, one hierarchy after the other.

use std::path::Path;

use containerd_shim::protos::{
    cgroups::metrics::{
        BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
        MemoryStat, Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
    },
    protobuf::MessageField,
};

use super::{Table, number, page_sizes, parse, rdma};
use crate::cgroup::{Cgroup, CgroupError, Version, folder};

/// `cpuacct.stat` counts in this; it is 100 a second on all machines that Linux supports today.
const NANOSECONDS_A_TICK: u64 = 10_000_000;

/// Reads what the hierarchies have.
pub(super) fn metrics(cgroup: &Cgroup) -> Result<Metrics, CgroupError> {
    let mut metrics = Metrics::default();
    let folder = |controller| match cgroup.version(controller) {
        Some(Version::V1) => cgroup.folder(controller),
        Some(Version::V2) | None => None,
    };
    let mut cpu = CPUStat::default();
    if let Some(path) = folder("cpuacct") {
        cpu.usage = MessageField::some(cpu_usage(path)?);
    }
    if let Some(path) = folder("cpu") {
        cpu.throttling = MessageField::some(throttle(path)?);
    }
    metrics.cpu = MessageField::some(cpu);
    if let Some(path) = folder("memory") {
        metrics.memory = MessageField::some(memory(path)?);
        metrics.memory_oom_control = MessageField::some(oom_control(path)?);
    }
    if let Some(path) = folder("pids") {
        metrics.pids = MessageField::some(pids(path)?);
    }
    if let Some(path) = folder("blkio") {
        metrics.blkio = MessageField::some(block_io(path)?);
    }
    if let Some(path) = folder("hugetlb") {
        metrics.hugetlb = hugepages(path)?;
    }
    if let Some(path) = folder("rdma") {
        metrics.rdma = MessageField::some(RdmaStat {
            current: rdma_entries(path, "rdma.current")?,
            limit: rdma_entries(path, "rdma.max")?,
            ..RdmaStat::default()
        });
    }
    Ok(metrics)
}

fn cpu_usage(path: &Path) -> Result<CPUUsage, CgroupError> {
    let mut usage = CPUUsage {
        total: number(path, "cpuacct.usage")?.unwrap_or(0),
        ..CPUUsage::default()
    };
    if let Some(table) = Table::read(path, "cpuacct.stat")? {
        table.each(|name, value| match name {
            "user" => usage.user = value * NANOSECONDS_A_TICK,
            "system" => usage.kernel = value * NANOSECONDS_A_TICK,
            _ => {}
        });
    }
    let file = "cpuacct.usage_percpu";
    let text = folder::read(path, file)?;
    usage.per_cpu = text
        .split_whitespace()
        .map(|text| parse(path, file, text))
        .collect::<Result<_, _>>()?;
    Ok(usage)
}

fn throttle(path: &Path) -> Result<Throttle, CgroupError> {
    let mut throttle = Throttle::default();
    if let Some(table) = Table::read(path, "cpu.stat")? {
        table.each(|name, value| match name {
            "nr_periods" => throttle.periods = value,
            "nr_throttled" => throttle.throttled_periods = value,
            "throttled_time" => throttle.throttled_time = value,
            _ => {}
        });
    }
    Ok(throttle)
}

fn memory(path: &Path) -> Result<MemoryStat, CgroupError> {
    let mut stat = MemoryStat::default();
    if let Some(table) = Table::read(path, "memory.stat")? {
        table.each(|name, value| set_memory(&mut stat, name, value));
    }
    stat.usage = entry(path, "memory")?;
    stat.swap = entry(path, "memory.memsw")?;
    stat.kernel = entry(path, "memory.kmem")?;
    stat.kernel_tcp = entry(path, "memory.kmem.tcp")?;
    Ok(stat)
}

fn set_memory(stat: &mut MemoryStat, name: &str, value: u64) {
    match name {
        "cache" => stat.cache = value,
        "rss" => stat.rss = value,
        "rss_huge" => stat.rss_huge = value,
        "mapped_file" => stat.mapped_file = value,
        "dirty" => stat.dirty = value,
        "writeback" => stat.writeback = value,
        "pgpgin" => stat.pg_pg_in = value,
        "pgpgout" => stat.pg_pg_out = value,
        "pgfault" => stat.pg_fault = value,
        "pgmajfault" => stat.pg_maj_fault = value,
        "inactive_anon" => stat.inactive_anon = value,
        "active_anon" => stat.active_anon = value,
        "inactive_file" => stat.inactive_file = value,
        "active_file" => stat.active_file = value,
        "unevictable" => stat.unevictable = value,
        "hierarchical_memory_limit" => stat.hierarchical_memory_limit = value,
        "hierarchical_memsw_limit" => stat.hierarchical_swap_limit = value,
        "total_cache" => stat.total_cache = value,
        "total_rss" => stat.total_rss = value,
        "total_rss_huge" => stat.total_rss_huge = value,
        "total_mapped_file" => stat.total_mapped_file = value,
        "total_dirty" => stat.total_dirty = value,
        "total_writeback" => stat.total_writeback = value,
        "total_pgpgin" => stat.total_pg_pg_in = value,
        "total_pgpgout" => stat.total_pg_pg_out = value,
        "total_pgfault" => stat.total_pg_fault = value,
        "total_pgmajfault" => stat.total_pg_maj_fault = value,
        "total_inactive_anon" => stat.total_inactive_anon = value,
        "total_active_anon" => stat.total_active_anon = value,
        "total_inactive_file" => stat.total_inactive_file = value,
        "total_active_file" => stat.total_active_file = value,
        "total_unevictable" => stat.total_unevictable = value,
        _ => {}
    }
}

/// Nothing where this kernel does not count it.
fn entry(path: &Path, name: &str) -> Result<MessageField<MemoryEntry>, CgroupError> {
    let number = |end: &str| number(path, &format!("{name}.{end}"));
    let Some(usage) = number("usage_in_bytes")? else {
        return Ok(MessageField::none());
    };
    Ok(MessageField::some(MemoryEntry {
        usage,
        limit: number("limit_in_bytes")?.unwrap_or(0),
        max: number("max_usage_in_bytes")?.unwrap_or(0),
        failcnt: number("failcnt")?.unwrap_or(0),
        ..MemoryEntry::default()
    }))
}

fn oom_control(path: &Path) -> Result<MemoryOomControl, CgroupError> {
    let mut control = MemoryOomControl::default();
    if let Some(table) = Table::read(path, "memory.oom_control")? {
        table.each(|name, value| match name {
            "oom_kill_disable" => control.oom_kill_disable = value,
            "under_oom" => control.under_oom = value,
            "oom_kill" => control.oom_kill = value,
            _ => {}
        });
    }
    Ok(control)
}

/// As in containerd, no limit is 0.
fn pids(path: &Path) -> Result<PidsStat, CgroupError> {
    Ok(PidsStat {
        current: number(path, "pids.current")?.unwrap_or(0),
        limit: number(path, "pids.max")?
            .filter(|&limit| limit != u64::MAX)
            .unwrap_or(0),
        ..PidsStat::default()
    })
}

/// The files' names differ with the scheduler; the first that is there with lines is the one.
fn block_io(path: &Path) -> Result<BlkIOStat, CgroupError> {
    let recursive = |name: &str| -> Result<Vec<BlkIOEntry>, CgroupError> {
        for prefix in ["blkio.bfq.", "blkio.", "blkio.throttle."] {
            let entries = block_entries(path, &format!("{prefix}{name}_recursive"))?;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        block_entries(path, &format!("blkio.throttle.{name}"))
    };
    Ok(BlkIOStat {
        io_service_bytes_recursive: recursive("io_service_bytes")?,
        io_serviced_recursive: recursive("io_serviced")?,
        io_queued_recursive: recursive("io_queued")?,
        io_service_time_recursive: recursive("io_service_time")?,
        io_wait_time_recursive: recursive("io_wait_time")?,
        io_merged_recursive: recursive("io_merged")?,
        io_time_recursive: recursive("time")?,
        sectors_recursive: recursive("sectors")?,
        ..BlkIOStat::default()
    })
}

/// Lines as in `8:0 Read 1282048` and `8:0 6792`; the sum of all devices is left out.
fn block_entries(path: &Path, file: &str) -> Result<Vec<BlkIOEntry>, CgroupError> {
    let text = folder::read_if_any(path, file)?.unwrap_or_default();
    let mut entries = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split([' ', ':']).collect();
        let (major, minor, op, value) = match words[..] {
            [major, minor, op, value] => (major, minor, op, value),
            [major, minor, value] => (major, minor, "", value),
            _ => continue,
        };
        let (major, minor) = (parse(path, file, major)?, parse(path, file, minor)?);
        entries.push(BlkIOEntry {
            op: op.to_owned(),
            device: device_name(major, minor),
            major,
            minor,
            value: parse(path, file, value)?,
            ..BlkIOEntry::default()
        });
    }
    Ok(entries)
}

/// As in `/dev/sda`; nothing where there is no such device.
fn device_name(major: u64, minor: u64) -> String {
    let path = format!("/sys/dev/block/{major}:{minor}");
    let Ok(target) = std::fs::read_link(path) else {
        return String::new();
    };
    let name = target
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    format!("/dev/{name}")
}

fn hugepages(path: &Path) -> Result<Vec<HugetlbStat>, CgroupError> {
    let read = |size: String| {
        let number = |end: &str| number(path, &format!("hugetlb.{size}.{end}"));
        Ok(HugetlbStat {
            usage: number("usage_in_bytes")?.unwrap_or(0),
            max: number("max_usage_in_bytes")?.unwrap_or(0),
            failcnt: number("failcnt")?.unwrap_or(0),
            pagesize: size.clone(),
            ..HugetlbStat::default()
        })
    };
    page_sizes(path, ".usage_in_bytes")
        .into_iter()
        .map(read)
        .collect()
}

fn rdma_entries(path: &Path, file: &str) -> Result<Vec<RdmaEntry>, CgroupError> {
    let entry = |(device, hca_handles, hca_objects)| RdmaEntry {
        device,
        hca_handles,
        hca_objects,
        ..RdmaEntry::default()
    };
    Ok(rdma(path, file)?.into_iter().map(entry).collect())
}
