//! What a balancer is told of this machine: that it is there, how busy its processors are, which instances it has.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{executor::instance::InstanceInfo, id::InstanceId};

/// How busy the processors were between two looks.
#[derive(Debug)]
pub(super) struct HostCpu {
    last: Mutex<Option<Ticks>>,
}

/// Clock ticks since boot, over all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    total: u64,
}

impl HostCpu {
    /// Counts from now on.
    pub(super) fn new() -> Self {
        Self {
            last: Mutex::new(now()),
        }
    }

    /// Percent since the last call, or since the start; none where no tick has passed.
    pub(super) fn usage(&self) -> Option<f64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (*last, now());
        *last = to;
        percent(from?, to?)
    }
}

fn now() -> Option<Ticks> {
    ticks(&std::fs::read_to_string("/proc/stat").ok()?)
}

/// `{"status":"pass","usage":12.5,"runtimes":{"a":{"status":"pass","usage":3.1}}}`. What is not known is null for
/// the host and left out for an instance.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    status: &'static str,
    usage: Option<f64>,
    runtimes: Map<String, Value>,
}

impl Health {
    /// Instances that are still being made are not told.
    pub(super) fn new(
        host: Option<f64>,
        instances: Vec<InstanceInfo>,
        usage: impl Fn(&InstanceId) -> Option<f64>,
    ) -> Self {
        let made = instances
            .into_iter()
            .filter(|info| info.start_duration.is_some());
        let told = made.map(|info| {
            let health = match usage(&info.id) {
                Some(usage) => json!({"status": "pass", "usage": usage}),
                None => json!({"status": "pass"}),
            };
            (info.id.into(), health)
        });
        Self {
            status: "pass",
            usage: host,
            runtimes: told.collect(),
        }
    }
}

/// Source: `proc_stat(5)`: user, nice, system, idle, iowait, irq, softirq, steal; what follows is within user and nice.
fn ticks(stat: &str) -> Option<Ticks> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let counts: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map_while(|count| count.parse().ok())
        .collect();
    let total = counts.iter().sum();
    let waiting = counts.get(3)? + counts.get(4).copied().unwrap_or(0);
    Some(Ticks {
        busy: total - waiting,
        total,
    })
}

fn percent(from: Ticks, to: Ticks) -> Option<f64> {
    let total = to
        .total
        .checked_sub(from.total)
        .filter(|total| *total > 0)?;
    // iowait may go down, so the difference may be below zero.
    let busy = to.busy.saturating_sub(from.busy).min(total);
    Some((busy as f64 / total as f64 * 10_000.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_what_was_not_idle_between_two_looks() {
        let first = ticks("cpu  10 0 10 70 10 0 0 0 5 0\ncpu0 1 2").unwrap();
        assert_eq!(
            first,
            Ticks {
                busy: 20,
                total: 100
            }
        );
        let second = ticks("cpu  30 0 15 130 25 0 0 0 9 0").unwrap();
        assert_eq!(percent(first, second), Some(25.0));
        assert_eq!(percent(second, second), None);
        assert_eq!(percent(second, first), None);
        assert_eq!(ticks(""), None);
        assert_eq!(ticks("cpu  1 2"), None);
    }
}
