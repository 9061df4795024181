//! Which ids an unprivileged node has: its user's own, and those that root has given it in `/etc/subuid`, `/etc/subgid`.

use std::{
    fs,
    io::{self, Read},
    process::{Command, ExitCode},
};

use rustix::process::{getgid, getuid};

use super::IMAGE_IDS;
use crate::{config::Config, sys::IDS};

/// Which ids inside are sandboxes'. The kernel maps a sandbox's ids only where they come from one range outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    first: u32,
    sandboxes: u32,
}

/// Ids cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The user is in no line of a file.
    #[error(
        "user {user} has {count} subordinate ids in {file}, but needs 65,536 for images and as many in a row for each \
         sandbox; as root: usermod --add-subuids 1879048192-2147483647 --add-subgids 1879048192-2147483647 {user}"
    )]
    TooFew {
        /// Who.
        user: String,
        /// Which file.
        file: &'static str,
        /// How many it has.
        count: u64,
    },
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// Which.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The programs that map ids did not.
    #[error("{text}")]
    Refused {
        /// In their words.
        text: String,
    },
}

/// Ids that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// Users' ids, then groups'.
const FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
const PROGRAMS: [&str; 2] = ["newuidmap", "newgidmap"];

impl Ids {
    /// Those that root has given this process's user.
    pub(super) fn of_user() -> Result<Self, MapError> {
        Self::of(&user(), getuid().as_raw())
    }

    /// Those that root has given a user.
    ///
    /// # Errors
    /// They are too few for a sandbox.
    pub fn of(user: &str, uid: u32) -> Result<Self, MapError> {
        let mut least: Option<Self> = None;
        for file in FILES {
            let ranges = subordinate(file, user, uid)?;
            let ids = Self::among(inside(&ranges).into_iter());
            if ids.sandboxes == 0 {
                return Err(MapError::TooFew {
                    user: user.to_owned(),
                    file,
                    count: ranges.iter().map(|range| u64::from(range.count)).sum(),
                });
            }
            let is_less = |least: Self| ids.sandboxes < least.sandboxes;
            if least.is_none_or(is_less) {
                least = Some(ids);
            }
        }
        Ok(least.expect("there are two files"))
    }

    /// The range inside that has room for most sandboxes, above the ids of images.
    fn among(inside: impl Iterator<Item = Range>) -> Self {
        let sandboxes = |range: Range| {
            let first = range.first.max(IMAGE_IDS);
            let end = range.first.saturating_add(range.count);
            Self {
                first,
                sandboxes: end.saturating_sub(first) / IDS,
            }
        };
        let none = Self {
            first: IMAGE_IDS,
            sandboxes: 0,
        };
        inside
            .map(sandboxes)
            .max_by_key(|ids| ids.sandboxes)
            .unwrap_or(none)
    }

    /// Those of this process's user namespace.
    pub(super) fn here() -> Result<Self, MapError> {
        let file = "/proc/self/uid_map";
        let text = fs::read_to_string(file).map_err(|source| MapError::Read { file, source })?;
        Ok(Self::among(text.lines().filter_map(extent)))
    }

    /// Gives each sandbox ids of those that are here.
    pub(super) fn apply(self, config: &mut Config) {
        config.sandbox.first_id = self.first;
        config.sandbox.max = config.sandbox.max.min(self.sandboxes);
    }

    /// How many sandboxes can be at once.
    pub fn sandboxes(self) -> u32 {
        self.sandboxes
    }
}

/// Maps the ids of process `pid` once standard input has ended: what the hidden subcommand does.
pub fn map_ids(pid: &str) -> ExitCode {
    let _ = io::stdin().read_to_end(&mut Vec::new());
    let own = [getuid().as_raw(), getgid().as_raw()];
    for ((file, program), own) in FILES.into_iter().zip(PROGRAMS).zip(own) {
        if let Err(text) = map(pid, file, program, own) {
            eprintln!("{text}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn map(pid: &str, file: &'static str, program: &str, own: u32) -> Result<(), String> {
    let ranges =
        subordinate(file, &user(), getuid().as_raw()).map_err(|error| error.to_string())?;
    let output = Command::new(program)
        .arg(pid)
        .args(arguments(own, &ranges))
        .output()
        .map_err(|error| {
            format!("cannot run {program}: {error}; as root: apt-get install uidmap")
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} failed: {}", text.trim()))
}

/// Triples of an id inside, one outside, and how many.
fn arguments(own: u32, ranges: &[Range]) -> Vec<String> {
    let mut triples = vec![[0, own, 1]];
    let pairs = inside(ranges).into_iter().zip(ranges);
    triples.extend(pairs.map(|(inside, outside)| [inside.first, outside.first, inside.count]));
    triples.concat().iter().map(u32::to_string).collect()
}

/// Where ranges outside are inside: one after the other, from 1 on.
fn inside(ranges: &[Range]) -> Vec<Range> {
    let mut next = 1_u32;
    let place = |range: &Range| {
        // Ids end before 2^32 - 1.
        let count = range.count.min(u32::MAX - next);
        let first = next;
        next += count;
        Range { first, count }
    };
    ranges.iter().map(place).collect()
}

fn subordinate(file: &'static str, user: &str, uid: u32) -> Result<Vec<Range>, MapError> {
    let text = fs::read_to_string(file).map_err(|source| MapError::Read { file, source })?;
    Ok(ranges(&text, user, uid))
}

/// Lines are `user:first:count`, the user by name or id.
///
/// Source: subuid(5).
fn ranges(text: &str, user: &str, uid: u32) -> Vec<Range> {
    let uid = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        let first = fields.next()?.parse().ok()?;
        let count = fields.next()?.parse().ok()?;
        (who == user || who == uid).then_some(Range { first, count })
    };
    text.lines().filter_map(range).collect()
}

/// A line of a map: an id inside, one outside, and how many.
///
/// Source: user_namespaces(7).
fn extent(line: &str) -> Option<Range> {
    let mut numbers = line.split_whitespace().map(str::parse);
    let first = numbers.next()?.ok()?;
    let count = numbers.nth(1)?.ok()?;
    Some(Range { first, count })
}

fn user() -> String {
    let uid = nix::unistd::getuid();
    let found = nix::unistd::User::from_uid(uid).ok().flatten();
    found.map_or_else(|| uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_ranges_of_its_lines() {
        #[track_caller]
        fn check(text: &str, expected: &[(u32, u32)]) {
            let found: Vec<_> = ranges(text, "opr", 990)
                .iter()
                .map(|range| (range.first, range.count))
                .collect();
            assert_eq!(found, expected);
        }
        check("", &[]);
        check("alice:100000:65536\n", &[]);
        check(
            "opr:100000:65536\n990:300000:10\nopr:bad:1\nopr:5\n",
            &[(100_000, 65_536), (300_000, 10)],
        );
    }

    #[test]
    fn root_inside_is_the_user_and_all_else_subordinate() {
        let ranges = [
            Range {
                first: 100_000,
                count: 65_536,
            },
            Range {
                first: 300_000,
                count: 10,
            },
        ];
        assert_eq!(
            arguments(990, &ranges).join(" "),
            "0 990 1 1 100000 65536 65537 300000 10"
        );
    }

    #[test]
    fn sandboxes_have_what_images_leave_of_one_range() {
        #[track_caller]
        fn check(map: &str, first: u32, sandboxes: u32) {
            let ids = Ids::among(map.lines().filter_map(extent));
            assert_eq!((ids.first, ids.sandboxes), (first, sandboxes));
        }
        check("0 990 1\n1 100000 65535\n", 65_536, 0);
        check("0 990 1\n1 100000 131071\n", 65_536, 1);
        check(
            "         0        990          1\n         1 1879048192  268435456\n",
            65_536,
            4095,
        );
        // The last id of the first range stays unused: no sandbox lies in two.
        check("0 990 1\n1 100000 65536\n65537 300000 131072\n", 65_537, 2);
    }
}
