//! `linux.resources.cpu`.

use oci_spec::runtime::LinuxCpu;

use super::{Otherwise, Plan, Version, impossible, invalid};
use crate::cgroup::CgroupError;

const SHARES: &str = "linux.resources.cpu.shares";
const QUOTA: &str = "linux.resources.cpu.quota";
const PERIOD: &str = "linux.resources.cpu.period";
const BURST: &str = "linux.resources.cpu.burst";
const IDLE: &str = "linux.resources.cpu.idle";
const REALTIME_PERIOD: &str = "linux.resources.cpu.realtimePeriod";
const REALTIME_RUNTIME: &str = "linux.resources.cpu.realtimeRuntime";
const CPUS: &str = "linux.resources.cpu.cpus";
const MEMS: &str = "linux.resources.cpu.mems";

pub(super) fn plan(plan: &mut Plan<'_>, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    realtime(plan, cpu)?;
    share(plan, cpu)?;
    bandwidth(plan, cpu)?;
    for (field, file, value) in [
        (CPUS, "cpuset.cpus", cpu.cpus()),
        (MEMS, "cpuset.mems", cpu.mems()),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            plan.version("cpuset", field)?;
            plan.set("cpuset", field, file, value);
        }
    }
    Ok(())
}

fn realtime(plan: &mut Plan<'_>, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    let period = cpu.realtime_period().filter(|&period| period != 0);
    let runtime = cpu.realtime_runtime().filter(|&runtime| runtime != 0);
    for (field, file, value) in [
        (
            REALTIME_PERIOD,
            "cpu.rt_period_us",
            period.map(|value| value.to_string()),
        ),
        (
            REALTIME_RUNTIME,
            "cpu.rt_runtime_us",
            runtime.map(|value| value.to_string()),
        ),
    ] {
        let Some(value) = value else { continue };
        match plan.version("cpu", field)? {
            Version::V1 => {
                plan.add("cpu", field, vec![(file.into(), value)], Otherwise::Later);
            }
            version @ Version::V2 => return Err(impossible(field, version)),
        }
    }
    Ok(())
}

/// Shares and idle: an idle cgroup takes no shares, so that idle goes first when it ends and last when it begins.
fn share(plan: &mut Plan<'_>, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    let idle = match cpu.idle() {
        Some(idle @ (0 | 1)) => Some(idle),
        Some(idle) => return Err(invalid(IDLE, format!("{idle} is neither 0 nor 1"))),
        None => None,
    };
    if idle == Some(0) {
        plan.version("cpu", IDLE)?;
        plan.set("cpu", IDLE, "cpu.idle", 0);
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        match plan.version("cpu", SHARES)? {
            Version::V1 if !(2..=262_144).contains(&shares) => {
                return Err(invalid(SHARES, format!("{shares} is not from 2 to 262144")));
            }
            Version::V1 => plan.set("cpu", SHARES, "cpu.shares", shares),
            Version::V2 => plan.set("cpu", SHARES, "cpu.weight", weight_of(shares)),
        }
    }
    if idle == Some(1) {
        plan.version("cpu", IDLE)?;
        plan.set("cpu", IDLE, "cpu.idle", 1);
    }
    Ok(())
}

/// Version 2's weight, from 1 to 10,000, for version 1's shares, from 2 to 262,144.
///
/// Source: the line that runc 1.1, crun and Kubernetes draw (Kubernetes enhancement 2254).
fn weight_of(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Each may fit only with the others in place: a shorter period with the old quota may be more than the parent
/// has, and a burst is at most the quota.
fn bandwidth(plan: &mut Plan<'_>, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    let set = |plan: &mut Plan<'_>, field, file: &'static str, value: String| {
        plan.add("cpu", field, vec![(file.into(), value)], Otherwise::Later);
    };
    if quota.is_some() || period.is_some() {
        let field = if quota.is_some() { QUOTA } else { PERIOD };
        match plan.version("cpu", field)? {
            Version::V1 => {
                if let Some(period) = period {
                    set(plan, PERIOD, "cpu.cfs_period_us", period.to_string());
                }
                if let Some(quota) = quota {
                    set(plan, QUOTA, "cpu.cfs_quota_us", quota.max(-1).to_string());
                }
            }
            Version::V2 => {
                let value = max_of(plan, quota, period);
                set(plan, field, "cpu.max", value);
            }
        }
    }
    if let Some(burst) = cpu.burst() {
        let file = match plan.version("cpu", BURST)? {
            Version::V1 => "cpu.cfs_burst_us",
            Version::V2 => "cpu.max.burst",
        };
        set(plan, BURST, file, burst.to_string());
    }
    Ok(())
}

/// Version 2's `cpu.max`: what is not given stays.
fn max_of(plan: &Plan<'_>, quota: Option<i64>, period: Option<u64>) -> String {
    match (quota.map(super::limit_v2), period) {
        (Some(quota), Some(period)) => format!("{quota} {period}"),
        // The kernel keeps the period.
        (Some(quota), None) => quota,
        (None, period) => {
            let old = plan.place.read("cpu", "cpu.max").unwrap_or_default();
            let old = old.split_whitespace().next().unwrap_or("max").to_owned();
            format!("{old} {}", period.unwrap_or(100_000))
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::cgroup::limits::tests::{check, check_with};

    #[test]
    fn shares_become_a_weight() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (2048, 79), (262_144, 10_000)] {
            assert_eq!(weight_of(shares), weight);
        }
        check(
            r#"{"cpu":{"shares":1024}}"#,
            expect![[r#"
            cpu: cpu.shares=1024
        "#]],
            expect![[r#"
            cpu: cpu.weight=39
        "#]],
        );
        check(
            r#"{"cpu":{"shares":1}}"#,
            expect![[r#"
            linux.resources.cpu.shares: 1 is not from 2 to 262144
        "#]],
            expect![[r#"
            cpu: cpu.weight=1
        "#]],
        );
    }

    #[test]
    fn quota_and_period_are_one_value_on_version_2() {
        check(
            r#"{"cpu":{"quota":50000,"period":100000,"burst":1}}"#,
            expect![[r#"
                cpu: cpu.cfs_period_us=100000 (or later)
                cpu: cpu.cfs_quota_us=50000 (or later)
                cpu: cpu.cfs_burst_us=1 (or later)
            "#]],
            expect![[r#"
                cpu: cpu.max=50000 100000 (or later)
                cpu: cpu.max.burst=1 (or later)
            "#]],
        );
        check(
            r#"{"cpu":{"quota":-1}}"#,
            expect![[r#"
                cpu: cpu.cfs_quota_us=-1 (or later)
            "#]],
            expect![[r#"
                cpu: cpu.max=max (or later)
            "#]],
        );
        check_with(
            &[("cpu.max", "7000 100000\n")],
            r#"{"cpu":{"period":50000}}"#,
            expect![[r#"
                cpu: cpu.cfs_period_us=50000 (or later)
            "#]],
            expect![[r#"
                cpu: cpu.max=7000 50000 (or later)
            "#]],
        );
    }

    #[test]
    fn idle_is_set_around_shares() {
        check(
            r#"{"cpu":{"idle":1,"shares":2}}"#,
            expect![[r#"
            cpu: cpu.shares=2
            cpu: cpu.idle=1
        "#]],
            expect![[r#"
            cpu: cpu.weight=1
            cpu: cpu.idle=1
        "#]],
        );
        check(
            r#"{"cpu":{"idle":0,"shares":2}}"#,
            expect![[r#"
            cpu: cpu.idle=0
            cpu: cpu.shares=2
        "#]],
            expect![[r#"
            cpu: cpu.idle=0
            cpu: cpu.weight=1
        "#]],
        );
        check(
            r#"{"cpu":{"idle":2}}"#,
            expect![[r#"
            linux.resources.cpu.idle: 2 is neither 0 nor 1
        "#]],
            expect![[r#"
            linux.resources.cpu.idle: 2 is neither 0 nor 1
        "#]],
        );
    }

    #[test]
    fn the_rest() {
        check(
            r#"{"cpu":{"realtimePeriod":1000000,"realtimeRuntime":950000}}"#,
            expect![[r#"
                cpu: cpu.rt_period_us=1000000 (or later)
                cpu: cpu.rt_runtime_us=950000 (or later)
            "#]],
            expect![[r#"
                linux.resources.cpu.realtimePeriod needs its controller on cgroup version 1, which this machine does not have
            "#]],
        );
        check(
            r#"{"cpu":{"cpus":"0-1,3","mems":"0"}}"#,
            expect![[r#"
            cpuset: cpuset.cpus=0-1,3
            cpuset: cpuset.mems=0
        "#]],
            expect![[r#"
            cpuset: cpuset.cpus=0-1,3
            cpuset: cpuset.mems=0
        "#]],
        );
        check(r#"{"cpu":{"cpus":""}}"#, expect![[""]], expect![[""]]);
    }
}
