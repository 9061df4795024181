//! Pressure stall information: how much of the time is lost because processors, memory or disks are short.
//!
//! The kernel tells when pressure rises, and not when it falls: who waits for that looks again.

use std::{fs, io, path::Path};

use super::Shortage;
use crate::config::Admission;

/// Which threshold is passed; the first one. What cannot be read is not looked at: see [`lacking`].
pub(super) fn passed(settings: &Admission) -> Option<Shortage> {
    settings
        .thresholds()
        .into_iter()
        .find_map(|(resource, limits)| {
            // Mostly no limit is set, and nothing is read.
            let mut text = None;
            limits.lines().find_map(|(line, limit)| {
                let text = text.get_or_insert_with(|| read(&settings.pressure_dir, resource));
                let found = average(text.as_ref().ok()?, line)?;
                (found > limit).then_some(Shortage::Pressure {
                    resource,
                    line,
                    found,
                    limit,
                })
            })
        })
}

/// The thresholds that are set, but that this kernel has no figures for, as in `cpu.pressure`.
pub fn lacking(settings: &Admission) -> Vec<String> {
    let is_lacking = |resource: &str, line: &str| {
        let text = read(&settings.pressure_dir, resource);
        text.ok().and_then(|text| average(&text, line)).is_none()
    };
    let thresholds = settings.thresholds().into_iter();
    thresholds
        .filter(|(resource, limits)| {
            let mut lines = limits.lines();
            lines.any(|(line, _)| is_lacking(resource, line))
        })
        .map(|(resource, _)| format!("{resource}.pressure"))
        .collect()
}

/// The file of the machine is called `cpu`, that of a cgroup `cpu.pressure`.
fn read(folder: &Path, resource: &str) -> io::Result<String> {
    fs::read_to_string(folder.join(resource))
        .or_else(|_| fs::read_to_string(folder.join(format!("{resource}.pressure"))))
}

/// Percent of the last ten seconds.
///
/// ```text
/// some avg10=1.53 avg60=0.87 avg300=0.73 total=1055674357
/// full avg10=0.00 avg60=0.13 avg300=0.28 total=475296204
/// ```
///
/// Source: Documentation/accounting/psi.rst; `cpu` has no line `full` before Linux 5.13.
fn average(text: &str, line: &str) -> Option<f64> {
    let is_wanted = |found: &&str| found.split_whitespace().next() == Some(line);
    let mut words = text.lines().find(is_wanted)?.split_whitespace();
    let average = words.find_map(|word| word.strip_prefix("avg10="))?;
    average.parse().ok().filter(|share: &f64| share.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "some avg10=1.53 avg60=0.87 avg300=0.73 total=1055674357\n\
                        full avg10=0.25 avg60=0.13 avg300=0.28 total=475296204\n";

    /// Settings of `[admission]`, with pressure in a folder of its own.
    fn settings(text: &str) -> (tempfile::TempDir, Admission) {
        let dir = tempfile::tempdir().unwrap();
        let settings = Admission {
            pressure_dir: dir.path().into(),
            ..toml::from_str(text).unwrap()
        };
        (dir, settings)
    }

    #[test]
    fn reads_the_last_ten_seconds_of_each_line() {
        #[track_caller]
        fn check(text: &str, line: &str, expected: Option<f64>) {
            assert_eq!(average(text, line), expected, "{text:?}");
        }
        check(TEXT, "some", Some(1.53));
        check(TEXT, "full", Some(0.25));
        check("some avg10=100.00 avg60=0.00", "some", Some(100.0));
        check("some avg10=100.00", "full", None);
        check("something avg10=1.00", "some", None);
        check("some avg60=1.00", "some", None);
        check("some avg10=NaN", "some", None);
        check("", "some", None);
    }

    #[test]
    fn a_threshold_is_passed_by_more_than_it() {
        #[track_caller]
        fn check(text: &str, expected: Option<(&str, &str, f64, f64)>) {
            let (dir, settings) = settings(text);
            fs::write(dir.path().join("io.pressure"), TEXT).unwrap();
            fs::write(dir.path().join("cpu"), TEXT).unwrap();
            let expected = expected.map(|(resource, line, found, limit)| match resource {
                "cpu" | "io" => format!("{resource} {line} {found} {limit}"),
                _ => unreachable!(),
            });
            let found = passed(&settings).map(|shortage| match shortage {
                Shortage::Pressure {
                    resource,
                    line,
                    found,
                    limit,
                } => format!("{resource} {line} {found} {limit}"),
                other => panic!("{other}"),
            });
            assert_eq!(found, expected, "{text}");
        }
        check("", None);
        check("'io.pressure' = { some = 1.53 }", None);
        check(
            "'io.pressure' = { some = 1.52 }",
            Some(("io", "some", 1.53, 1.52)),
        );
        check(
            "'io.pressure' = { some = 90, full = 0.2 }",
            Some(("io", "full", 0.25, 0.2)),
        );
        let all = "'io.pressure' = { some = 1 }\n'cpu.pressure' = { some = 1 }";
        check(all, Some(("cpu", "some", 1.53, 1.0)));
        // There is no file of it.
        check("'memory.pressure' = { some = 0.1 }", None);
    }

    #[test]
    fn thresholds_without_figures_are_named() {
        let text = "'cpu.pressure' = { some = 1, full = 1 }\n'io.pressure' = { full = 1 }\n\
                    'memory.pressure' = { some = 1 }";
        let (dir, settings) = settings(text);
        assert_eq!(
            lacking(&settings),
            ["cpu.pressure", "memory.pressure", "io.pressure"]
        );
        fs::write(dir.path().join("cpu"), "some avg10=1.00\n").unwrap();
        fs::write(dir.path().join("memory.pressure"), TEXT).unwrap();
        fs::write(dir.path().join("io"), TEXT).unwrap();
        assert_eq!(lacking(&settings), ["cpu.pressure"]);
        assert_eq!(lacking(&Admission::default()), [""; 0]);
    }
}
