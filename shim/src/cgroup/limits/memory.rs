//! `linux.resources.memory`. The spec's `swap` is memory and swap together, as on version 1.

use oci_spec::runtime::LinuxMemory;

use super::{Otherwise, Plan, Version, impossible, invalid, limit_v2};
use crate::cgroup::CgroupError;

const LIMIT: &str = "linux.resources.memory.limit";
const SWAP: &str = "linux.resources.memory.swap";
const RESERVATION: &str = "linux.resources.memory.reservation";
const KERNEL: &str = "linux.resources.memory.kernel";
const KERNEL_TCP: &str = "linux.resources.memory.kernelTCP";
const SWAPPINESS: &str = "linux.resources.memory.swappiness";
const DISABLE_OOM_KILLER: &str = "linux.resources.memory.disableOOMKiller";
const USE_HIERARCHY: &str = "linux.resources.memory.useHierarchy";

const LIMIT_V1: &str = "memory.limit_in_bytes";
const SWAP_V1: &str = "memory.memsw.limit_in_bytes";

/// As in runc, 0 is "not set" for what is counted in bytes.
fn given(value: Option<i64>) -> Option<i64> {
    value.filter(|&value| value != 0)
}

pub(super) fn plan(plan: &mut Plan<'_>, memory: &LinuxMemory) -> Result<(), CgroupError> {
    let fields = [
        (LIMIT, given(memory.limit())),
        (SWAP, given(memory.swap())),
        (RESERVATION, given(memory.reservation())),
        (KERNEL, given(memory.kernel())),
        (KERNEL_TCP, given(memory.kernel_tcp())),
    ];
    for (field, value) in fields {
        if let Some(value @ ..-1) = value {
            return Err(invalid(field, format!("{value} is less than -1")));
        }
    }
    let others = [
        (SWAPPINESS, memory.swappiness().is_some()),
        (
            DISABLE_OOM_KILLER,
            memory.disable_oom_killer() == Some(true),
        ),
        (USE_HIERARCHY, memory.use_hierarchy().is_some()),
    ];
    let mut asked = (fields
        .into_iter()
        .map(|(field, value)| (field, value.is_some())))
    .chain(others)
    .filter_map(|(field, is_asked)| is_asked.then_some(field));
    let Some(first) = asked.next() else {
        return Ok(());
    };
    let version = plan.version("memory", first)?;
    check_usage(plan, memory, version)?;
    match version {
        Version::V1 => plan_v1(plan, memory),
        Version::V2 => plan_v2(plan, memory),
    }
}

/// `checkBeforeUpdate`: a limit below what is in use would kill, so that it is refused.
fn check_usage(plan: &Plan<'_>, memory: &LinuxMemory, version: Version) -> Result<(), CgroupError> {
    if memory.check_before_update() != Some(true) {
        return Ok(());
    }
    let file = match version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    };
    let usage = number(plan, file).unwrap_or(0);
    match given(memory.limit()) {
        Some(limit @ 1..) if limit < usage => Err(invalid(
            LIMIT,
            format!("{limit} is less than the {usage} bytes in use"),
        )),
        _ => Ok(()),
    }
}

fn number(plan: &Plan<'_>, file: &str) -> Option<i64> {
    plan.place.read("memory", file)?.trim().parse().ok()
}

fn plan_v1(plan: &mut Plan<'_>, memory: &LinuxMemory) -> Result<(), CgroupError> {
    limits_v1(plan, memory);
    kernel_v1(plan, memory);
    match memory.swappiness() {
        Some(swappiness @ 0..=100) => {
            plan.set("memory", SWAPPINESS, "memory.swappiness", swappiness);
        }
        // As in runc: -1 in 64 bits, which some clients write for "not set".
        Some(u64::MAX) | None => {}
        Some(swappiness) => {
            let reason = format!("{swappiness} is not from 0 to 100");
            return Err(invalid(SWAPPINESS, reason));
        }
    }
    if let Some(value) = given(memory.reservation()) {
        plan.set("memory", RESERVATION, "memory.soft_limit_in_bytes", value);
    }
    if memory.disable_oom_killer() == Some(true) {
        plan.set("memory", DISABLE_OOM_KILLER, "memory.oom_control", 1);
    }
    if let Some(is_used) = memory.use_hierarchy() {
        let value = u8::from(is_used);
        plan.set("memory", USE_HIERARCHY, "memory.use_hierarchy", value);
    }
    Ok(())
}

fn limits_v1(plan: &mut Plan<'_>, memory: &LinuxMemory) {
    let limit = given(memory.limit());
    let mut swap = given(memory.swap());
    // Memory without limit leaves no meaning to a limit of both together.
    let mut otherwise = Otherwise::Fail;
    if limit == Some(-1) && swap.is_none() {
        swap = Some(-1);
        otherwise = Otherwise::Skip;
    }
    // The kernel holds memory <= memory and swap at each moment, so that what grows goes first.
    let is_swap_first = match (limit, swap) {
        (Some(_), Some(-1)) => true,
        (Some(_), Some(swap)) => number(plan, LIMIT_V1).is_some_and(|current| current < swap),
        (None, _) | (_, None) => false,
    };
    let set_swap = |plan: &mut Plan<'_>| {
        if let Some(swap) = swap {
            plan.add(
                "memory",
                SWAP,
                vec![(SWAP_V1.into(), swap.to_string())],
                otherwise,
            );
        }
    };
    if is_swap_first {
        set_swap(plan);
    }
    if let Some(limit) = limit {
        plan.set("memory", LIMIT, LIMIT_V1, limit);
    }
    if !is_swap_first {
        set_swap(plan);
    }
}

/// What the kernel itself uses for the container.
fn kernel_v1(plan: &mut Plan<'_>, memory: &LinuxMemory) {
    if let Some(value) = given(memory.kernel()) {
        // From Linux 5.16 on the file is there, and does nothing.
        let otherwise = match value {
            -1 => Otherwise::Skip,
            _ => Otherwise::Verify,
        };
        let choices = vec![("memory.kmem.limit_in_bytes".into(), value.to_string())];
        plan.add("memory", KERNEL, choices, otherwise);
    }
    if let Some(value) = given(memory.kernel_tcp()) {
        plan.set(
            "memory",
            KERNEL_TCP,
            "memory.kmem.tcp.limit_in_bytes",
            value,
        );
    }
}

fn plan_v2(plan: &mut Plan<'_>, memory: &LinuxMemory) -> Result<(), CgroupError> {
    let refused = [
        (
            KERNEL,
            given(memory.kernel()).is_some_and(|value| value >= 0),
        ),
        (
            KERNEL_TCP,
            given(memory.kernel_tcp()).is_some_and(|value| value >= 0),
        ),
        (
            SWAPPINESS,
            memory.swappiness().is_some_and(|value| value != u64::MAX),
        ),
        (
            DISABLE_OOM_KILLER,
            memory.disable_oom_killer() == Some(true),
        ),
        (USE_HIERARCHY, memory.use_hierarchy() == Some(false)),
    ];
    if let Some((field, _)) = refused.iter().find(|(_, is_asked)| *is_asked) {
        return Err(impossible(*field, Version::V2));
    }
    let limit = given(memory.limit());
    // Swap goes first: a lower limit can then move memory there instead of killing.
    if let Some(swap) = swap_alone(plan, limit, given(memory.swap()))? {
        let otherwise = match swap {
            // No swap to limit is no swap, and none without a limit.
            0 | -1 => Otherwise::Skip,
            _ => Otherwise::Fail,
        };
        let choices = vec![("memory.swap.max".into(), limit_v2(swap))];
        plan.add("memory", SWAP, choices, otherwise);
    }
    if let Some(limit) = limit {
        plan.set("memory", LIMIT, "memory.max", limit_v2(limit));
    }
    if let Some(reservation) = given(memory.reservation()) {
        plan.set("memory", RESERVATION, "memory.low", limit_v2(reservation));
    }
    Ok(())
}

/// Swap without memory, for version 2.
fn swap_alone(
    plan: &Plan<'_>,
    limit: Option<i64>,
    swap: Option<i64>,
) -> Result<Option<i64>, CgroupError> {
    let both = match (swap, limit) {
        (Some(-1), _) => return Ok(Some(-1)),
        (None, Some(-1)) => return Ok(Some(-1)),
        (None, _) => return Ok(None),
        (Some(both), _) => both,
    };
    // An update of swap alone is meant with the limit in place.
    match limit.or_else(|| number(plan, "memory.max")) {
        Some(-1) => Ok(Some(both)),
        Some(limit) if both >= limit => Ok(Some(both - limit)),
        Some(limit) => Err(invalid(
            SWAP,
            format!("memory and swap together, {both}, is less than the limit of memory, {limit}"),
        )),
        None => Err(invalid(SWAP, "it needs a limit of memory")),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::cgroup::limits::tests::{check, check_with};

    #[test]
    fn swap_is_told_apart_on_version_2() {
        check(
            r#"{"memory":{"limit":1000,"swap":3000}}"#,
            expect![[r#"
                memory: memory.limit_in_bytes=1000
                memory: memory.memsw.limit_in_bytes=3000
            "#]],
            expect![[r#"
            memory: memory.swap.max=2000
            memory: memory.max=1000
        "#]],
        );
        check(
            r#"{"memory":{"limit":1000,"swap":1000}}"#,
            expect![[r#"
                memory: memory.limit_in_bytes=1000
                memory: memory.memsw.limit_in_bytes=1000
            "#]],
            expect![[r#"
            memory: memory.swap.max=0 (or skip)
            memory: memory.max=1000
        "#]],
        );
        check(
            r#"{"memory":{"limit":1000,"swap":-1}}"#,
            expect![[r#"
            memory: memory.memsw.limit_in_bytes=-1
            memory: memory.limit_in_bytes=1000
        "#]],
            expect![[r#"
            memory: memory.swap.max=max (or skip)
            memory: memory.max=1000
        "#]],
        );
        check(
            r#"{"memory":{"limit":1000}}"#,
            expect![[r#"
            memory: memory.limit_in_bytes=1000
        "#]],
            expect![[r#"
            memory: memory.max=1000
        "#]],
        );
    }

    #[test]
    fn no_limit_is_told_to_both() {
        check(
            r#"{"memory":{"limit":-1}}"#,
            expect![[r#"
            memory: memory.memsw.limit_in_bytes=-1 (or skip)
            memory: memory.limit_in_bytes=-1
        "#]],
            expect![[r#"
            memory: memory.swap.max=max (or skip)
            memory: memory.max=max
        "#]],
        );
        check(
            r#"{"memory":{"limit":-1,"swap":5}}"#,
            expect![[r#"
                memory: memory.limit_in_bytes=-1
                memory: memory.memsw.limit_in_bytes=5
            "#]],
            expect![[r#"
            memory: memory.swap.max=5
            memory: memory.max=max
        "#]],
        );
    }

    #[test]
    fn swap_without_a_limit_that_fits_is_refused() {
        check(
            r#"{"memory":{"limit":3000,"swap":1000}}"#,
            expect![[r#"
                memory: memory.limit_in_bytes=3000
                memory: memory.memsw.limit_in_bytes=1000
            "#]],
            expect![[r#"
            linux.resources.memory.swap: memory and swap together, 1000, is less than the limit of memory, 3000
        "#]],
        );
        check(
            r#"{"memory":{"swap":1000}}"#,
            expect![[r#"
            memory: memory.memsw.limit_in_bytes=1000
        "#]],
            expect![[r#"
            linux.resources.memory.swap: it needs a limit of memory
        "#]],
        );
        check(
            r#"{"memory":{"limit":-2}}"#,
            expect![[r#"
            linux.resources.memory.limit: -2 is less than -1
        "#]],
            expect![[r#"
            linux.resources.memory.limit: -2 is less than -1
        "#]],
        );
    }

    #[test]
    fn what_is_in_place_decides_the_order() {
        let files = [
            ("memory.limit_in_bytes", "5000\n"),
            ("memory.max", "1000\n"),
            ("memory.usage_in_bytes", "900\n"),
            ("memory.current", "900\n"),
        ];
        check_with(
            &files,
            r#"{"memory":{"limit":1000,"swap":3000}}"#,
            expect![[r#"
            memory: memory.limit_in_bytes=1000
            memory: memory.memsw.limit_in_bytes=3000
        "#]],
            expect![[r#"
            memory: memory.swap.max=2000
            memory: memory.max=1000
        "#]],
        );
        check_with(
            &files,
            r#"{"memory":{"limit":6000,"swap":7000}}"#,
            expect![[r#"
            memory: memory.memsw.limit_in_bytes=7000
            memory: memory.limit_in_bytes=6000
        "#]],
            expect![[r#"
            memory: memory.swap.max=1000
            memory: memory.max=6000
        "#]],
        );
        check_with(
            &files,
            r#"{"memory":{"swap":1500}}"#,
            expect![[r#"
            memory: memory.memsw.limit_in_bytes=1500
        "#]],
            expect![[r#"
            memory: memory.swap.max=500
        "#]],
        );
        let checked = r#"{"memory":{"limit":800,"checkBeforeUpdate":true}}"#;
        check_with(
            &files,
            checked,
            expect![[r#"
            linux.resources.memory.limit: 800 is less than the 900 bytes in use
        "#]],
            expect![[r#"
            linux.resources.memory.limit: 800 is less than the 900 bytes in use
        "#]],
        );
    }

    #[test]
    fn what_version_2_lacks_is_refused() {
        check(
            r#"{"memory":{"limit":1,"reservation":2,"kernel":3,"kernelTCP":4,"swappiness":60,"disableOOMKiller":true,"useHierarchy":true}}"#,
            expect![[r#"
                memory: memory.limit_in_bytes=1
                memory: memory.kmem.limit_in_bytes=3 (verified)
                memory: memory.kmem.tcp.limit_in_bytes=4
                memory: memory.swappiness=60
                memory: memory.soft_limit_in_bytes=2
                memory: memory.oom_control=1
                memory: memory.use_hierarchy=1
            "#]],
            expect![[r#"
                linux.resources.memory.kernel needs its controller on cgroup version 1, which this machine does not have
            "#]],
        );
        check(
            r#"{"memory":{"reservation":2,"useHierarchy":true}}"#,
            expect![[r#"
            memory: memory.soft_limit_in_bytes=2
            memory: memory.use_hierarchy=1
        "#]],
            expect![[r#"
            memory: memory.low=2
        "#]],
        );
        check(
            r#"{"memory":{"kernel":-1,"kernelTCP":-1}}"#,
            expect![[r#"
                memory: memory.kmem.limit_in_bytes=-1 (or skip)
                memory: memory.kmem.tcp.limit_in_bytes=-1
            "#]],
            expect![[""]],
        );
        check(
            r#"{"memory":{"kernelTCP":4}}"#,
            expect![[r#"
            memory: memory.kmem.tcp.limit_in_bytes=4
        "#]],
            expect![[r#"
                linux.resources.memory.kernelTCP needs its controller on cgroup version 1, which this machine does not have
            "#]],
        );
    }

    #[test]
    fn switches_are_refused_where_they_have_no_meaning() {
        check(
            r#"{"memory":{"swappiness":101}}"#,
            expect![[r#"
            linux.resources.memory.swappiness: 101 is not from 0 to 100
        "#]],
            expect![[r#"
                linux.resources.memory.swappiness needs its controller on cgroup version 1, which this machine does not have
            "#]],
        );
        check(
            r#"{"memory":{"disableOOMKiller":true}}"#,
            expect![[r#"
            memory: memory.oom_control=1
        "#]],
            expect![[r#"
                linux.resources.memory.disableOOMKiller needs its controller on cgroup version 1, which this machine does not have
            "#]],
        );
        check(
            r#"{"memory":{"disableOOMKiller":false}}"#,
            expect![[""]],
            expect![[""]],
        );
        check(
            r#"{"memory":{"useHierarchy":false}}"#,
            expect![[r#"
            memory: memory.use_hierarchy=0
        "#]],
            expect![[r#"
                linux.resources.memory.useHierarchy needs its controller on cgroup version 1, which this machine does not have
            "#]],
        );
    }
}
