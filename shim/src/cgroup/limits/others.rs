//! `linux.resources`: pids, huge pages, network and RDMA.

use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxResources};

use super::{Otherwise, Plan, Version, invalid, limit_v2};
use crate::cgroup::CgroupError;

const PIDS: &str = "linux.resources.pids.limit";
const HUGEPAGES: &str = "linux.resources.hugepageLimits";
const CLASS_ID: &str = "linux.resources.network.classID";
const PRIORITIES: &str = "linux.resources.network.priorities";
const RDMA: &str = "linux.resources.rdma";

pub(super) fn plan(plan: &mut Plan<'_>, resources: &LinuxResources) -> Result<(), CgroupError> {
    // As in runc, 0 is "not set".
    if let Some(limit) = resources
        .pids()
        .map(|pids| pids.limit())
        .filter(|&limit| limit != 0)
    {
        plan.version("pids", PIDS)?;
        plan.set("pids", PIDS, "pids.max", limit_v2(limit));
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        hugepages(plan, limit)?;
    }
    if let Some(network) = resources.network() {
        self::network(plan, network)?;
    }
    let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
    devices.sort_by_key(|(name, _)| *name);
    for (name, limits) in devices {
        plan.version("rdma", RDMA)?;
        check_name(RDMA, name)?;
        let mut value = name.clone();
        for (key, limit) in [
            ("hca_handle", limits.hca_handles()),
            ("hca_object", limits.hca_objects()),
        ] {
            if let Some(limit) = limit {
                value.push_str(&format!(" {key}={limit}"));
            }
        }
        if value != *name {
            plan.set("rdma", RDMA, "rdma.max", value);
        }
    }
    Ok(())
}

/// A page's size is a part of the file's name, as in `hugetlb.2MB.max`.
fn hugepages(plan: &mut Plan<'_>, limit: &LinuxHugepageLimit) -> Result<(), CgroupError> {
    let (size, limit) = (limit.page_size(), limit.limit());
    let is_size = size.len() <= 16
        && (size.bytes()).all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    if !is_size || size.is_empty() {
        return Err(invalid(
            HUGEPAGES,
            format!("{size:?} is no page size as in 2MB"),
        ));
    }
    let (name, value) = match plan.version("hugetlb", HUGEPAGES)? {
        Version::V1 => ("limit_in_bytes", limit.to_string()),
        Version::V2 => ("max", limit_v2(limit)),
    };
    let file = format!("hugetlb.{size}.{name}");
    plan.add(
        "hugetlb",
        HUGEPAGES,
        vec![(file.into(), value.clone())],
        Otherwise::Fail,
    );
    // Reserved pages are counted apart from Linux 5.7 on.
    let file = format!("hugetlb.{size}.rsvd.{name}");
    plan.add(
        "hugetlb",
        HUGEPAGES,
        vec![(file.into(), value)],
        Otherwise::Skip,
    );
    Ok(())
}

fn network(plan: &mut Plan<'_>, network: &LinuxNetwork) -> Result<(), CgroupError> {
    if let Some(class) = network.class_id().filter(|&class| class != 0) {
        plan.version("net_cls", CLASS_ID)?;
        plan.set("net_cls", CLASS_ID, "net_cls.classid", class);
    }
    for priority in network.priorities().iter().flatten() {
        plan.version("net_prio", PRIORITIES)?;
        check_name(PRIORITIES, priority.name())?;
        let value = format!("{} {}", priority.name(), priority.priority());
        plan.set("net_prio", PRIORITIES, "net_prio.ifpriomap", value);
    }
    Ok(())
}

/// A name that is one word of a line.
fn check_name(field: &'static str, name: &str) -> Result<(), CgroupError> {
    let is_word = (1..=255).contains(&name.len())
        && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '=');
    match is_word {
        true => Ok(()),
        false => Err(invalid(field, format!("{name:?} is no device's name"))),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::cgroup::limits::tests::check;

    #[test]
    fn pids_have_a_limit_or_none() {
        check(
            r#"{"pids":{"limit":100}}"#,
            expect![[r#"
            pids: pids.max=100
        "#]],
            expect![[r#"
            pids: pids.max=100
        "#]],
        );
        check(
            r#"{"pids":{"limit":-1}}"#,
            expect![[r#"
            pids: pids.max=max
        "#]],
            expect![[r#"
            pids: pids.max=max
        "#]],
        );
        check(r#"{"pids":{"limit":0}}"#, expect![[""]], expect![[""]]);
    }

    #[test]
    fn huge_pages_are_named_by_their_size() {
        check(
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
            expect![[r#"
                hugetlb: hugetlb.2MB.limit_in_bytes=4194304
                hugetlb: hugetlb.2MB.rsvd.limit_in_bytes=4194304 (or skip)
            "#]],
            expect![[r#"
                hugetlb: hugetlb.2MB.max=4194304
                hugetlb: hugetlb.2MB.rsvd.max=4194304 (or skip)
            "#]],
        );
        check(
            r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#,
            expect![[r#"
            linux.resources.hugepageLimits: "../x" is no page size as in 2MB
        "#]],
            expect![[r#"
            linux.resources.hugepageLimits: "../x" is no page size as in 2MB
        "#]],
        );
    }

    #[test]
    fn names_of_devices_are_one_word() {
        check(
            r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"a":{"hcaObjects":1}}}"#,
            expect![[r#"
                rdma: rdma.max=a hca_object=1
                rdma: rdma.max=mlx5_1 hca_handle=3 hca_object=10000
            "#]],
            expect![[r#"
                rdma: rdma.max=a hca_object=1
                rdma: rdma.max=mlx5_1 hca_handle=3 hca_object=10000
            "#]],
        );
        check(
            r#"{"rdma":{"a b":{"hcaHandles":3}}}"#,
            expect![[r#"
            linux.resources.rdma: "a b" is no device's name
        "#]],
            expect![[r#"
            linux.resources.rdma: "a b" is no device's name
        "#]],
        );
        check(
            r#"{"network":{"classID":1048577,"priorities":[{"name":"eth0","priority":500}]}}"#,
            expect![[r#"
                net_cls: net_cls.classid=1048577
                net_prio: net_prio.ifpriomap=eth0 500
            "#]],
            expect![[r#"
                net_cls: net_cls.classid=1048577
                net_prio: net_prio.ifpriomap=eth0 500
            "#]],
        );
        check(
            r#"{"network":{"priorities":[{"name":"e\nf","priority":1}]}}"#,
            expect![[r#"
                linux.resources.network.priorities: "e\nf" is no device's name
            "#]],
            expect![[r#"
                linux.resources.network.priorities: "e\nf" is no device's name
            "#]],
        );
    }
}
