//! A class's limits in the kernel's words.

use std::{collections::BTreeMap, io};

use crate::config::{Class, IoMax};

/// Microseconds; the kernel's own default.
const PERIOD: u64 = 100_000;
const MIB: u64 = 1024 * 1024;
const IO_KEYS: [&str; 4] = ["rbps", "wbps", "riops", "wiops"];

/// One limit of a class on its way to the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// As in `opr.toml`, which is version 2's file.
    pub(super) key: &'static str,
    /// The file; none where this version knows no such limit.
    pub(super) file: Option<&'static str>,
    pub(super) text: String,
    /// Whether the operator asked for it: otherwise it is the kernel's own default.
    pub(super) is_asked: bool,
}

/// All limits of a class but those of disks, for version 2 or 1.
///
/// Source: cgroup-v2.rst; sched-bwc.rst, cgroup-v1/memory.rst, cgroup-v1/blkio-controller.rst.
pub(super) fn values(class: &Class, is_v2: bool) -> Vec<Value> {
    let value = |key, text, is_asked| Value {
        key,
        file: if is_v2 { Some(key) } else { old_file(key) },
        text,
        is_asked,
    };
    // Version 1 has no word for the absence of a limit, and counts shares, 1,024 where version 2 has a weight of 100.
    let none = if is_v2 { "max" } else { "-1" };
    let weight = if is_v2 {
        class.cpu_weight
    } else {
        (class.cpu_weight * 1024 / 100).max(2)
    };
    let io_weight = if is_v2 {
        class.io_weight
    } else {
        class.io_weight.min(1000)
    };
    let quota = class.cpu_max.map(|cores| quota(cores.get()).to_string());
    let quota = quota.unwrap_or_else(|| none.to_owned());
    let quota = if is_v2 {
        format!("{quota} {PERIOD}")
    } else {
        quota
    };
    let bytes =
        |mib: Option<u64>, none: &str| mib.map_or(none.to_owned(), |mib| (mib * MIB).to_string());
    // Version 1 counts memory and swap together.
    let swap = match class.memory_max_mib {
        Some(memory) if !is_v2 => class.memory_swap_max_mib.map(|swap| swap + memory),
        _ => class.memory_swap_max_mib,
    };
    vec![
        value("cpu.weight", weight.to_string(), class.cpu_weight != 100),
        value("cpu.max", quota, class.cpu_max.is_some()),
        value(
            "memory.max",
            bytes(class.memory_max_mib, none),
            class.memory_max_mib.is_some(),
        ),
        value(
            "memory.high",
            bytes(class.memory_high_mib, none),
            class.memory_high_mib.is_some(),
        ),
        value(
            "memory.min",
            bytes(class.memory_min_mib, "0"),
            class.memory_min_mib.is_some(),
        ),
        value("memory.swap.max", bytes(swap, none), swap.is_some()),
        value("io.weight", io_weight.to_string(), class.io_weight != 100),
    ]
}

/// The limits of disks, and the end of those that the kernel has and the class no longer: `read` tells what is in a file.
/// Version 2 has one line for a disk, version 1 a file for each kind of limit.
///
/// Source: cgroup-v2.rst, cgroup-v1/blkio-controller.rst.
pub(super) fn io_values(
    limits: &[IoMax],
    is_v2: bool,
    read: &dyn Fn(&str) -> String,
) -> io::Result<Vec<Value>> {
    let mut asked = BTreeMap::new();
    for limit in limits {
        asked.insert(limit.number()?, limit.limits());
    }
    let disks_of = |file| {
        let text = read(file);
        let numbers = text.lines().filter_map(|line| line.split(' ').next());
        let mut disks: Vec<_> = numbers.map(str::to_owned).collect();
        disks.retain(|disk| !asked.contains_key(disk));
        disks.extend(asked.keys().cloned());
        disks
    };
    let value = |file, disk: &str, text: String| Value {
        key: "io.max",
        file: Some(file),
        text: format!("{disk} {text}"),
        is_asked: asked.contains_key(disk),
    };
    let most = |disk: &str, key: &str, none: &str| {
        let limit = asked.get(disk).and_then(|limits| limits.get(key));
        limit.map_or(none.to_owned(), u64::to_string)
    };
    if is_v2 {
        let line = |disk: &String| {
            let words = IO_KEYS.map(|key| format!("{key}={}", most(disk, key, "max")));
            value("io.max", disk, words.join(" "))
        };
        return Ok(disks_of("io.max").iter().map(line).collect());
    }
    let of_key = |key| {
        let file = throttle(key);
        disks_of(file)
            .into_iter()
            .map(move |disk| (file, key, disk))
    };
    let each = IO_KEYS.into_iter().flat_map(of_key);
    Ok(each
        .map(|(file, key, disk)| value(file, &disk, most(&disk, key, "0")))
        .collect())
}

/// The file of version 1 for a key of version 2.
fn old_file(key: &str) -> Option<&'static str> {
    match key {
        "cpu.weight" => Some("cpu.shares"),
        "cpu.max" => Some("cpu.cfs_quota_us"),
        "memory.max" => Some("memory.limit_in_bytes"),
        "memory.swap.max" => Some("memory.memsw.limit_in_bytes"),
        "io.weight" => Some("blkio.bfq.weight"),
        _ => None,
    }
}

fn throttle(key: &str) -> &'static str {
    match key {
        "rbps" => "blkio.throttle.read_bps_device",
        "wbps" => "blkio.throttle.write_bps_device",
        "riops" => "blkio.throttle.read_iops_device",
        _ => "blkio.throttle.write_iops_device",
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive float becomes the nearest u64"
)]
fn quota(cores: f64) -> u64 {
    (cores * PERIOD as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_told_in_the_words_of_each_version() {
        let class = Class {
            cpu_weight: 50,
            cpu_max: Some(1.5.try_into().unwrap()),
            memory_max_mib: Some(64),
            memory_high_mib: Some(32),
            memory_swap_max_mib: Some(16),
            ..Class::default()
        };
        let asked = |values: Vec<Value>| {
            let asked = values.into_iter().filter(|value| value.is_asked);
            asked
                .map(|value| format!("{} {:?}", value.file.unwrap_or("-"), value.text))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            asked(values(&class, true)),
            [
                "cpu.weight \"50\"",
                "cpu.max \"150000 100000\"",
                "memory.max \"67108864\"",
                "memory.high \"33554432\"",
                "memory.swap.max \"16777216\"",
            ]
        );
        assert_eq!(
            asked(values(&class, false)),
            [
                "cpu.shares \"512\"",
                "cpu.cfs_quota_us \"150000\"",
                "memory.limit_in_bytes \"67108864\"",
                "- \"33554432\"",
                "memory.memsw.limit_in_bytes \"83886080\"",
            ]
        );
        assert_eq!(asked(values(&Class::default(), true)), [""; 0]);
    }

    #[test]
    fn limits_of_disks_that_are_gone_are_lifted() {
        let class = ["8:0 rbps=100 wiops=7".parse().unwrap()];
        let told = |is_v2, kernel: &str| -> Vec<_> {
            let values = io_values(&class, is_v2, &|_| kernel.to_owned()).unwrap();
            let tell = |value: Value| {
                let end = if value.is_asked { "" } else { " (gone)" };
                format!("{} {}{end}", value.file.unwrap(), value.text)
            };
            values.into_iter().map(tell).collect()
        };
        let asked = "io.max 8:0 rbps=100 wbps=max riops=max wiops=7";
        let before =
            "8:0 rbps=max wbps=5 riops=max wiops=max\n8:16 rbps=1 wbps=max riops=max wiops=max\n";
        let gone = "io.max 8:16 rbps=max wbps=max riops=max wiops=max (gone)";
        assert_eq!(told(true, before), [gone, asked]);
        assert_eq!(told(true, ""), [asked]);
        assert_eq!(
            told(false, "8:16 5\n"),
            [
                "blkio.throttle.read_bps_device 8:16 0 (gone)",
                "blkio.throttle.read_bps_device 8:0 100",
                "blkio.throttle.write_bps_device 8:16 0 (gone)",
                "blkio.throttle.write_bps_device 8:0 0",
                "blkio.throttle.read_iops_device 8:16 0 (gone)",
                "blkio.throttle.read_iops_device 8:0 0",
                "blkio.throttle.write_iops_device 8:16 0 (gone)",
                "blkio.throttle.write_iops_device 8:0 7",
            ]
        );
    }
}
