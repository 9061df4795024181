//! `linux.resources` becomes values of files: what to write, where, and for which field.
//!
//! A plan is made before anything is written; it only reads what is in place where a value depends on that. What
//! has no controller or no meaning on this machine is an error that names the field, never left out.

mod cpu;
mod io;
mod memory;
mod others;
mod unified;

use std::borrow::Cow;

use oci_spec::runtime::LinuxResources;

use super::CgroupError;

/// What a file gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The controller whose folder has the file; `cgroup` is version 2's folder itself.
    pub(super) controller: Cow<'static, str>,
    /// As in `linux.resources.memory.limit`.
    pub(super) field: Cow<'static, str>,
    /// Files and their values; the first file that exists is the one.
    pub(super) choices: Vec<(Cow<'static, str>, String)>,
    /// What to do about a refusal.
    pub(super) otherwise: Otherwise,
}

/// What to do where a file is missing or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// It is an error.
    Fail,
    /// No file is fine: the value is what the kernel does without it.
    Skip,
    /// The value may fit only after later ones: it is tried again behind them.
    Later,
    /// Some kernels take the value and do nothing with it: it is read back.
    Verify,
}

/// Which version has a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// What a plan has to know of the machine and of the cgroup.
pub(super) trait Place {
    /// Which version has a controller, by version 1's name for it. Version 1 comes first.
    fn version(&self, controller: &str) -> Option<Version>;
    /// What a file of the controller's folder says; nothing where there is none.
    fn read(&self, controller: &str, file: &str) -> Option<String>;
}

/// Collects the settings of one controller.
struct Plan<'a> {
    place: &'a dyn Place,
    settings: Vec<Setting>,
}

/// Plans all limits; device rules are `device`'s.
///
/// # Errors
/// [`CgroupError::Missing`] and [`CgroupError::Value`].
pub(super) fn plan(
    resources: &LinuxResources,
    place: &dyn Place,
) -> Result<Vec<Setting>, CgroupError> {
    let mut plan = Plan {
        place,
        settings: Vec::new(),
    };
    if let Some(cpu) = resources.cpu() {
        cpu::plan(&mut plan, cpu)?;
    }
    if let Some(memory) = resources.memory() {
        memory::plan(&mut plan, memory)?;
    }
    if let Some(block_io) = resources.block_io() {
        io::plan(&mut plan, block_io)?;
    }
    others::plan(&mut plan, resources)?;
    if let Some(unified) = resources.unified() {
        unified::plan(&mut plan, unified)?;
    }
    Ok(plan.settings)
}

impl Plan<'_> {
    /// Which version has the controller that a field needs.
    fn version(&self, controller: &str, field: &'static str) -> Result<Version, CgroupError> {
        (self.place.version(controller)).ok_or_else(|| CgroupError::Missing {
            field: field.to_owned(),
            what: format!("the controller {controller}"),
        })
    }

    /// Adds one value for one file.
    fn set(
        &mut self,
        controller: &'static str,
        field: &'static str,
        file: &'static str,
        value: impl ToString,
    ) {
        self.add(
            controller,
            field,
            vec![(file.into(), value.to_string())],
            Otherwise::Fail,
        );
    }

    fn add(
        &mut self,
        controller: &'static str,
        field: impl Into<Cow<'static, str>>,
        choices: Vec<(Cow<'static, str>, String)>,
        otherwise: Otherwise,
    ) {
        self.settings.push(Setting {
            controller: controller.into(),
            field: field.into(),
            choices,
            otherwise,
        });
    }
}

/// A field that this machine's version of cgroups does not have.
fn impossible(field: impl Into<String>, version: Version) -> CgroupError {
    let other = match version {
        Version::V1 => 2,
        Version::V2 => 1,
    };
    CgroupError::Missing {
        field: field.into(),
        what: format!("its controller on cgroup version {other}"),
    }
}

/// A value that is out of range.
fn invalid(field: impl Into<String>, reason: impl Into<String>) -> CgroupError {
    CgroupError::Value {
        field: field.into(),
        reason: reason.into(),
    }
}

/// Version 2's word for a number of bytes or tasks: less than 0 is no limit.
fn limit_v2(value: i64) -> String {
    match value {
        ..0 => "max".to_owned(),
        value => value.to_string(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::HashMap, fmt::Write};

    use expect_test::{Expect, expect};

    use super::*;

    /// A machine with all controllers of one version, or with none.
    struct Machine {
        version: Option<Version>,
        files: HashMap<&'static str, &'static str>,
    }

    impl Place for Machine {
        fn version(&self, _controller: &str) -> Option<Version> {
            self.version
        }

        fn read(&self, _controller: &str, file: &str) -> Option<String> {
            self.files.get(file).map(|text| (*text).to_owned())
        }
    }

    fn told(
        version: Option<Version>,
        files: &[(&'static str, &'static str)],
        resources: &str,
    ) -> String {
        let resources = serde_json::from_str(resources).unwrap();
        let files = files.iter().copied().collect();
        let settings = match plan(&resources, &Machine { version, files }) {
            Ok(settings) => settings,
            Err(error) => return format!("{error}\n"),
        };
        settings.iter().fold(String::new(), |mut text, setting| {
            let choices: Vec<_> = (setting.choices.iter())
                .map(|(file, value)| format!("{file}={value}"))
                .collect();
            let mark = match setting.otherwise {
                Otherwise::Fail => "",
                Otherwise::Skip => " (or skip)",
                Otherwise::Later => " (or later)",
                Otherwise::Verify => " (verified)",
            };
            writeln!(
                text,
                "{}: {}{mark}",
                setting.controller,
                choices.join(" | ")
            )
            .unwrap();
            text
        })
    }

    /// The plan on version 1, and on version 2.
    #[track_caller]
    pub(super) fn check(resources: &str, v1: Expect, v2: Expect) {
        check_with(&[], resources, v1, v2);
    }

    /// As `check`, with what files say.
    #[track_caller]
    pub(super) fn check_with(
        files: &[(&'static str, &'static str)],
        resources: &str,
        v1: Expect,
        v2: Expect,
    ) {
        v1.assert_eq(&told(Some(Version::V1), files, resources));
        v2.assert_eq(&told(Some(Version::V2), files, resources));
    }

    /// What version 2 says to something that it refuses.
    pub(super) fn refused(resources: &str) -> String {
        told(Some(Version::V2), &[], resources)
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        check("{}", expect![""], expect![""]);
        check(
            r#"{"memory":{},"cpu":{},"blockIO":{},"network":{},"hugepageLimits":[],"rdma":{},"unified":{}}"#,
            expect![""],
            expect![""],
        );
    }

    #[test]
    fn what_has_no_controller_is_named() {
        let none = |resources: &str, expected: Expect| {
            expected.assert_eq(&told(None, &[], resources));
        };
        none(
            r#"{"memory":{"limit":1}}"#,
            expect![[r#"
            linux.resources.memory.limit needs the controller memory, which this machine does not have
        "#]],
        );
        none(
            r#"{"cpu":{"shares":100}}"#,
            expect![[r#"
            linux.resources.cpu.shares needs the controller cpu, which this machine does not have
        "#]],
        );
        none(
            r#"{"cpu":{"cpus":"0"}}"#,
            expect![[r#"
            linux.resources.cpu.cpus needs the controller cpuset, which this machine does not have
        "#]],
        );
        none(
            r#"{"pids":{"limit":5}}"#,
            expect![[r#"
            linux.resources.pids.limit needs the controller pids, which this machine does not have
        "#]],
        );
        none(
            r#"{"blockIO":{"weight":100}}"#,
            expect![[r#"
            linux.resources.blockIO.weight needs the controller blkio, which this machine does not have
        "#]],
        );
        none(
            r#"{"network":{"classID":1}}"#,
            expect![[r#"
            linux.resources.network.classID needs the controller net_cls, which this machine does not have
        "#]],
        );
        none(
            r#"{"rdma":{"mlx5":{"hcaHandles":1}}}"#,
            expect![[r#"
            linux.resources.rdma needs the controller rdma, which this machine does not have
        "#]],
        );
        none(
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#,
            expect![[r#"
            linux.resources.hugepageLimits needs the controller hugetlb, which this machine does not have
        "#]],
        );
        none(
            r#"{"unified":{"memory.high":"1"}}"#,
            expect![[r#"
            linux.resources.unified["memory.high"] needs the controller memory, which this machine does not have
        "#]],
        );
    }
}
