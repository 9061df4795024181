//! Which ids an unprivileged node has: its user's own, and those that root has given it in `/etc/subuid`, `/etc/subgid`.

use std::{
    fs,
    io::{self, Read},
    process::{Command, ExitCode},
};

use rustix::process::{getgid, getuid};

use super::IMAGE_IDS;
use crate::{config::Config, sys::IDS};

/// How many ids the node has inside, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids(u32);

/// Ids cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The user is in no line of a file.
    #[error(
        "user {user} has {count} subordinate ids in {file}, but needs {needed} for images and the first sandbox; as root: \
         usermod --add-subuids 1879048192-2147483647 --add-subgids 1879048192-2147483647 {user}"
    )]
    TooFew {
        /// Who.
        user: String,
        /// Which file.
        file: &'static str,
        /// How many it has.
        count: u32,
        /// How many are needed.
        needed: u32,
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
        let mut least = u32::MAX;
        for file in FILES {
            let count = total(&subordinate(file, user, uid)?);
            let needed = IMAGE_IDS - 1 + IDS;
            if count < needed {
                return Err(MapError::TooFew {
                    user: user.to_owned(),
                    file,
                    count,
                    needed,
                });
            }
            least = least.min(count);
        }
        Ok(Self(least.saturating_add(1)))
    }

    /// Those of this process's user namespace.
    pub(super) fn here() -> Result<Self, MapError> {
        let file = "/proc/self/uid_map";
        let text = fs::read_to_string(file).map_err(|source| MapError::Read { file, source })?;
        Ok(Self(mapped(&text)))
    }

    /// Gives each sandbox ids of those that are here.
    pub(super) fn apply(self, config: &mut Config) {
        config.sandbox.first_id = IMAGE_IDS;
        config.sandbox.max = config.sandbox.max.min(self.sandboxes());
    }

    /// How many sandboxes can be at once.
    pub fn sandboxes(self) -> u32 {
        self.0.saturating_sub(IMAGE_IDS) / IDS
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
    let mut next = 1_u32;
    for range in ranges {
        // Ids end before 2^32 - 1.
        let count = range.count.min(u32::MAX - next);
        triples.push([next, range.first, count]);
        next += count;
    }
    triples.concat().iter().map(u32::to_string).collect()
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

fn total(ranges: &[Range]) -> u32 {
    ranges
        .iter()
        .fold(0, |sum, range| sum.saturating_add(range.count))
}

/// The end of a map that begins at 0 and has no holes: lines of an id inside, one outside, and how many.
///
/// Source: user_namespaces(7).
fn mapped(text: &str) -> u32 {
    let count = |line: &str| line.split_whitespace().nth(2)?.parse::<u32>().ok();
    text.lines().filter_map(count).fold(0, u32::saturating_add)
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
        assert_eq!(total(&ranges), 65_546);
    }

    #[test]
    fn sandboxes_have_what_images_leave() {
        #[track_caller]
        fn check(map: &str, sandboxes: u32) {
            assert_eq!(Ids(mapped(map)).sandboxes(), sandboxes);
        }
        check("0 990 1\n1 100000 65535\n", 0);
        check("0 990 1\n1 100000 131071\n", 1);
        check(
            "         0        990          1\n         1 1879048192  268435456\n",
            4095,
        );
    }
}
