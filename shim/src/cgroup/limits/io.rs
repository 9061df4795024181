//! `linux.resources.blockIO`.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice, LinuxWeightDevice};

use super::{Otherwise, Plan, Version, impossible, invalid};
use crate::cgroup::CgroupError;

const WEIGHT: &str = "linux.resources.blockIO.weight";
const LEAF_WEIGHT: &str = "linux.resources.blockIO.leafWeight";
const WEIGHT_DEVICE: &str = "linux.resources.blockIO.weightDevice";

pub(super) fn plan(plan: &mut Plan<'_>, io: &LinuxBlockIo) -> Result<(), CgroupError> {
    if let Some(weight) = given(io.weight()) {
        let weight = checked(WEIGHT, weight)?;
        let choices = match plan.version("blkio", WEIGHT)? {
            Version::V1 => vec![
                ("blkio.weight".into(), weight.to_string()),
                ("blkio.bfq.weight".into(), weight.to_string()),
            ],
            Version::V2 => vec![
                ("io.bfq.weight".into(), weight.to_string()),
                ("io.weight".into(), weight_v2(weight).to_string()),
            ],
        };
        plan.add("blkio", WEIGHT, choices, Otherwise::Fail);
    }
    if let Some(weight) = given(io.leaf_weight()) {
        let weight = checked(LEAF_WEIGHT, weight)?;
        match plan.version("blkio", LEAF_WEIGHT)? {
            Version::V1 => plan.set("blkio", LEAF_WEIGHT, "blkio.leaf_weight", weight),
            version @ Version::V2 => return Err(impossible(LEAF_WEIGHT, version)),
        }
    }
    for device in io.weight_device().iter().flatten() {
        weight_device(plan, device)?;
    }
    throttles(plan, io)
}

fn given(weight: Option<u16>) -> Option<u16> {
    weight.filter(|&weight| weight != 0)
}

fn checked(field: &'static str, weight: u16) -> Result<u16, CgroupError> {
    match weight {
        10..=1000 => Ok(weight),
        _ => Err(invalid(field, format!("{weight} is not from 10 to 1000"))),
    }
}

/// Version 2's weight, from 1 to 10,000, for version 1's, from 10 to 1,000.
///
/// Source: the line that runc 1.1 and crun draw.
fn weight_v2(weight: u16) -> u32 {
    1 + (u32::from(weight) - 10) * 9999 / 990
}

fn weight_device(plan: &mut Plan<'_>, device: &LinuxWeightDevice) -> Result<(), CgroupError> {
    let number = number_of(WEIGHT_DEVICE, device.major(), device.minor())?;
    let version = plan.version("blkio", WEIGHT_DEVICE)?;
    if let Some(weight) = given(device.weight()) {
        let weight = checked(WEIGHT_DEVICE, weight)?;
        let old = format!("{number} {weight}");
        let choices = match version {
            Version::V1 => vec![
                ("blkio.weight_device".into(), old.clone()),
                ("blkio.bfq.weight_device".into(), old),
            ],
            Version::V2 => vec![
                ("io.bfq.weight".into(), old),
                (
                    "io.weight".into(),
                    format!("{number} {}", weight_v2(weight)),
                ),
            ],
        };
        plan.add("blkio", WEIGHT_DEVICE, choices, Otherwise::Fail);
    }
    if let Some(weight) = given(device.leaf_weight()) {
        let weight = checked(WEIGHT_DEVICE, weight)?;
        match version {
            Version::V1 => {
                let value = format!("{number} {weight}");
                plan.set("blkio", WEIGHT_DEVICE, "blkio.leaf_weight_device", value);
            }
            Version::V2 => return Err(impossible(WEIGHT_DEVICE, version)),
        }
    }
    Ok(())
}

fn throttles(plan: &mut Plan<'_>, io: &LinuxBlockIo) -> Result<(), CgroupError> {
    let kinds = [
        (
            "linux.resources.blockIO.throttleReadBpsDevice",
            "blkio.throttle.read_bps_device",
            "rbps",
            io.throttle_read_bps_device(),
        ),
        (
            "linux.resources.blockIO.throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            "wbps",
            io.throttle_write_bps_device(),
        ),
        (
            "linux.resources.blockIO.throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            "riops",
            io.throttle_read_iops_device(),
        ),
        (
            "linux.resources.blockIO.throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            "wiops",
            io.throttle_write_iops_device(),
        ),
    ];
    for (field, file, key, devices) in kinds {
        for device in devices.iter().flatten() {
            throttle(plan, (field, file, key), device)?;
        }
    }
    Ok(())
}

fn throttle(
    plan: &mut Plan<'_>,
    (field, file, key): (&'static str, &'static str, &'static str),
    device: &LinuxThrottleDevice,
) -> Result<(), CgroupError> {
    let number = number_of(field, device.major(), device.minor())?;
    match (plan.version("blkio", field)?, device.rate()) {
        (Version::V1, rate) => plan.set("blkio", field, file, format!("{number} {rate}")),
        // Version 1 takes a limit away by 0.
        (Version::V2, 0) => plan.set("blkio", field, "io.max", format!("{number} {key}=max")),
        (Version::V2, rate) => {
            plan.set("blkio", field, "io.max", format!("{number} {key}={rate}"));
        }
    }
    Ok(())
}

fn number_of(field: &'static str, major: i64, minor: i64) -> Result<String, CgroupError> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(invalid(field, format!("{major}:{minor} is no device"))),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::cgroup::limits::tests::check;

    #[test]
    fn weights_are_translated() {
        check(
            r#"{"blockIO":{"weight":500}}"#,
            expect![[r#"
            blkio: blkio.weight=500 | blkio.bfq.weight=500
        "#]],
            expect![[r#"
            blkio: io.bfq.weight=500 | io.weight=4950
        "#]],
        );
        check(
            r#"{"blockIO":{"weight":5}}"#,
            expect![[r#"
            linux.resources.blockIO.weight: 5 is not from 10 to 1000
        "#]],
            expect![[r#"
            linux.resources.blockIO.weight: 5 is not from 10 to 1000
        "#]],
        );
        check(
            r#"{"blockIO":{"leafWeight":10}}"#,
            expect![[r#"
            blkio: blkio.leaf_weight=10
        "#]],
            expect![[r#"
                linux.resources.blockIO.leafWeight needs its controller on cgroup version 1, which this machine does not have
            "#]],
        );
        check(
            r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":10,"leafWeight":1000}]}}"#,
            expect![[r#"
                blkio: blkio.weight_device=8:0 10 | blkio.bfq.weight_device=8:0 10
                blkio: blkio.leaf_weight_device=8:0 1000
            "#]],
            expect![[r#"
                linux.resources.blockIO.weightDevice needs its controller on cgroup version 1, which this machine does not have
            "#]],
        );
        check(
            r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":1000}]}}"#,
            expect![[r#"
                blkio: blkio.weight_device=8:0 1000 | blkio.bfq.weight_device=8:0 1000
            "#]],
            expect![[r#"
                blkio: io.bfq.weight=8:0 1000 | io.weight=8:0 10000
            "#]],
        );
    }

    #[test]
    fn throttles_are_one_file_on_version_2() {
        check(
            r#"{"blockIO":{
                "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],
                "throttleWriteBpsDevice":[{"major":8,"minor":1,"rate":2}],
                "throttleReadIOPSDevice":[{"major":8,"minor":2,"rate":3}],
                "throttleWriteIOPSDevice":[{"major":8,"minor":3,"rate":0}]}}"#,
            expect![[r#"
                blkio: blkio.throttle.read_bps_device=8:0 1
                blkio: blkio.throttle.write_bps_device=8:1 2
                blkio: blkio.throttle.read_iops_device=8:2 3
                blkio: blkio.throttle.write_iops_device=8:3 0
            "#]],
            expect![[r#"
                blkio: io.max=8:0 rbps=1
                blkio: io.max=8:1 wbps=2
                blkio: io.max=8:2 riops=3
                blkio: io.max=8:3 wiops=max
            "#]],
        );
        check(
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":-1,"minor":0,"rate":1}]}}"#,
            expect![[r#"
                linux.resources.blockIO.throttleReadBpsDevice: -1:0 is no device
            "#]],
            expect![[r#"
                linux.resources.blockIO.throttleReadBpsDevice: -1:0 is no device
            "#]],
        );
    }
}
