//! Mount options as fstab(5) and OCI have them: attributes, propagation, and what the file system itself takes.
//!
//! Source: OCI runtime spec 1.2, config-linux and config, "mounts"; mount(8).

use nix::libc;

use super::{Propagation, SpecError};
use crate::sys::{MountAttributes, attribute};

/// Options of one mount, sorted by who they are for.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct MountOptions {
    /// Of this mount.
    pub(crate) attributes: MountAttributes,
    /// Of this mount and all below it.
    pub(crate) recursive: MountAttributes,
    pub(crate) propagation: Vec<Propagation>,
    /// `bind` or `rbind`: whether what is mounted below comes too.
    pub(crate) bind: Option<bool>,
    pub(crate) is_remount: bool,
    /// What the image has there is copied into the new file system.
    pub(crate) copies_up: bool,
    /// `idmap` or `ridmap`: whether what is mounted below is mapped too.
    pub(crate) id_map: Option<bool>,
    /// The file system's own, as in `size=64k`.
    pub(crate) data: Vec<String>,
}

/// Sorts options. What is not known here is the file system's.
pub(crate) fn parse(options: &[String]) -> Result<MountOptions, SpecError> {
    let mut parsed = MountOptions::default();
    for option in options {
        parsed.add(option)?;
    }
    Ok(parsed)
}

impl MountOptions {
    fn add(&mut self, option: &str) -> Result<(), SpecError> {
        if let Some((set, clear)) = change_of(option) {
            self.attributes.change(set, clear);
            return Ok(());
        }
        if let Some((set, clear)) = option.strip_prefix('r').and_then(change_of) {
            self.recursive.change(set, clear);
            return Ok(());
        }
        if let Some(propagation) = propagation(option) {
            self.propagation.push(propagation);
            return Ok(());
        }
        match option {
            "bind" => self.bind = Some(false),
            "rbind" => self.bind = Some(true),
            "remount" => self.is_remount = true,
            "tmpcopyup" => self.copies_up = true,
            "idmap" => self.id_map = Some(false),
            "ridmap" => self.id_map = Some(true),
            "defaults" | "" => {}
            "acl" | "noacl" | "loud" | "silent" | "nomand" | "norelatime" | "nolazytime"
            | "async" => {}
            _ if option.contains('\0') => {
                let reason = format!("{option:?} has a NUL byte");
                return Err(SpecError::new("mounts.options", reason));
            }
            _ => self.data.push(option.to_owned()),
        }
        Ok(())
    }
}

impl MountAttributes {
    /// A later option wins over an earlier one.
    fn change(&mut self, set: u64, clear: u64) {
        self.set = self.set & !clear | set;
        self.clear = self.clear & !set | clear;
    }

    /// Whether there is nothing to change.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// What an option sets and clears.
fn change_of(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (attribute::RDONLY, 0),
        "rw" => (0, attribute::RDONLY),
        "nosuid" => (attribute::NOSUID, 0),
        "suid" => (0, attribute::NOSUID),
        "nodev" => (attribute::NODEV, 0),
        "dev" => (0, attribute::NODEV),
        "noexec" => (attribute::NOEXEC, 0),
        "exec" => (0, attribute::NOEXEC),
        "nodiratime" => (attribute::NODIRATIME, 0),
        "diratime" => (0, attribute::NODIRATIME),
        "nosymfollow" => (attribute::NOSYMFOLLOW, 0),
        "symfollow" => (0, attribute::NOSYMFOLLOW),
        "noatime" => (attribute::NOATIME, attribute::ATIME),
        "strictatime" => (attribute::STRICTATIME, attribute::ATIME),
        "relatime" | "atime" | "nostrictatime" => (attribute::RELATIME, attribute::ATIME),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<Propagation> {
    let (name, is_recursive) = match option.strip_prefix('r') {
        Some(name) => (name, true),
        None => (option, false),
    };
    let kind = match name {
        "private" => libc::MS_PRIVATE,
        "slave" => libc::MS_SLAVE,
        "shared" => libc::MS_SHARED,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(Propagation { kind, is_recursive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(options: &[&str], expected: MountOptions) {
        let options: Vec<_> = options.iter().map(ToString::to_string).collect();
        assert_eq!(parse(&options).unwrap(), expected);
    }

    #[test]
    fn later_options_win() {
        let attributes = MountAttributes {
            set: attribute::NOSUID,
            clear: attribute::RDONLY,
            propagation: 0,
        };
        check(
            &["ro", "nosuid", "rw"],
            MountOptions {
                attributes,
                ..MountOptions::default()
            },
        );
    }

    #[test]
    fn options_are_sorted_by_who_they_are_for() {
        check(
            &["rbind", "rro", "rslave", "size=64k", "mode=755"],
            MountOptions {
                bind: Some(true),
                recursive: MountAttributes {
                    set: attribute::RDONLY,
                    ..MountAttributes::default()
                },
                propagation: vec![Propagation {
                    kind: libc::MS_SLAVE,
                    is_recursive: true,
                }],
                data: vec!["size=64k".into(), "mode=755".into()],
                ..MountOptions::default()
            },
        );
    }

    #[test]
    fn relatime_is_not_taken_for_a_recursive_atime() {
        check(
            &["relatime"],
            MountOptions {
                attributes: MountAttributes {
                    set: attribute::RELATIME,
                    clear: attribute::ATIME,
                    propagation: 0,
                },
                ..MountOptions::default()
            },
        );
    }
}
