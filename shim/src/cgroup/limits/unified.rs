//! `linux.resources.unified`: files of version 2 by their names.

use std::collections::HashMap;

use super::{Otherwise, Plan, Setting, Version, impossible, invalid};
use crate::cgroup::CgroupError;

const UNIFIED: &str = "linux.resources.unified";

/// The files of the cgroup itself that are limits. The others move processes, end them, or would make the cgroup
/// one that no process can be born into.
const OWN_FILES: [&str; 3] = [
    "cgroup.max.depth",
    "cgroup.max.descendants",
    "cgroup.pressure",
];

pub(super) fn plan(
    plan: &mut Plan<'_>,
    unified: &HashMap<String, String>,
) -> Result<(), CgroupError> {
    let mut files: Vec<_> = unified.iter().collect();
    files.sort();
    for (file, value) in files {
        let field = format!("{UNIFIED}[{file:?}]");
        let (controller, _) = (file.split_once('.'))
            .filter(|(controller, _)| !controller.is_empty() && !file.contains(['/', '\0']))
            .ok_or_else(|| invalid(&*field, "it is no name as in memory.high"))?;
        if controller == "cgroup" && !OWN_FILES.contains(&&**file) {
            return Err(invalid(field, "a container cannot have it set"));
        }
        // Version 2 has one controller where version 1 has another name for it.
        let known = if controller == "io" {
            "blkio"
        } else {
            controller
        };
        match plan.place.version(known) {
            Some(Version::V2) => {}
            Some(version @ Version::V1) => return Err(impossible(field, version)),
            None => {
                let what = format!("the controller {controller}");
                return Err(CgroupError::Missing { field, what });
            }
        }
        plan.settings.push(Setting {
            controller: known.to_owned().into(),
            field: field.into(),
            choices: vec![(file.clone().into(), value.clone())],
            otherwise: Otherwise::Fail,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::cgroup::limits::tests::check;

    #[test]
    fn files_are_written_as_they_are() {
        check(
            r#"{"unified":{"memory.high":"1000","io.max":"8:0 rbps=1","cgroup.max.depth":"3"}}"#,
            expect![[r#"
                linux.resources.unified["cgroup.max.depth"] needs its controller on cgroup version 2, which this machine does not have
            "#]],
            expect![[r#"
                cgroup: cgroup.max.depth=3
                blkio: io.max=8:0 rbps=1
                memory: memory.high=1000
            "#]],
        );
    }

    #[test]
    fn files_that_are_no_limits_are_refused() {
        for name in [
            "cgroup.procs",
            "cgroup.subtree_control",
            "../x.y",
            "memory",
            ".x",
            "a/b.c",
        ] {
            let resources = serde_json::json!({ "unified": { name: "1" } }).to_string();
            let text = crate::cgroup::limits::tests::refused(&resources);
            assert!(text.starts_with("linux.resources.unified["), "{text}");
        }
    }
}
