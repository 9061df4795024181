//! A class's limits in the kernel's words.

use std::io;

use crate::config::{Class, IoMax};

/// Microseconds; the kernel's own default.
const PERIOD: u64 = 100_000;
const MIB: u64 = 1024 * 1024;

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

/// All limits of a class, for version 2 or 1.
///
/// Source: cgroup-v2.rst; sched-bwc.rst, cgroup-v1/memory.rst, cgroup-v1/blkio-controller.rst.
pub(super) fn values(class: &Class, is_v2: bool) -> io::Result<Vec<Value>> {
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
    let mut all = vec![
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
    ];
    for limit in &class.io_max {
        all.extend(io_values(limit, is_v2)?);
    }
    Ok(all)
}

/// Version 2 has one line for a disk, version 1 a file for each kind of limit.
fn io_values(limit: &IoMax, is_v2: bool) -> io::Result<Vec<Value>> {
    let number = limit.number()?;
    let value = |file, text| Value {
        key: "io.max",
        file: Some(file),
        text,
        is_asked: true,
    };
    let limits = limit.limits().iter();
    if is_v2 {
        let text: String = limits
            .map(|(key, value)| format!(" {key}={value}"))
            .collect();
        return Ok(vec![value("io.max", number + &text)]);
    }
    Ok(limits
        .map(|(key, most)| value(throttle(key), format!("{number} {most}")))
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
            io_max: vec!["8:0 rbps=100 wiops=7".parse().unwrap()],
            ..Class::default()
        };
        let asked = |values: Vec<Value>| {
            let asked = values.into_iter().filter(|value| value.is_asked);
            asked
                .map(|value| format!("{} {:?}", value.file.unwrap_or("-"), value.text))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            asked(values(&class, true).unwrap()),
            [
                "cpu.weight \"50\"",
                "cpu.max \"150000 100000\"",
                "memory.max \"67108864\"",
                "memory.high \"33554432\"",
                "memory.swap.max \"16777216\"",
                "io.max \"8:0 rbps=100 wiops=7\"",
            ]
        );
        assert_eq!(
            asked(values(&class, false).unwrap()),
            [
                "cpu.shares \"512\"",
                "cpu.cfs_quota_us \"150000\"",
                "memory.limit_in_bytes \"67108864\"",
                "- \"33554432\"",
                "memory.memsw.limit_in_bytes \"83886080\"",
                "blkio.throttle.read_bps_device \"8:0 100\"",
                "blkio.throttle.write_iops_device \"8:0 7\"",
            ]
        );
        assert_eq!(asked(values(&Class::default(), true).unwrap()), [""; 0]);
    }
}
