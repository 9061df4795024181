//! The rules' meaning, and the shortest way from one policy to another.

use std::{collections::BTreeMap, fmt};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// A kind of device file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cgroup) enum Kind {
    Block,
    Char,
}

/// Which device files a rule is about. No number means each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cgroup) struct Device {
    pub(in crate::cgroup) major: Option<u32>,
    pub(in crate::cgroup) minor: Option<u32>,
    pub(in crate::cgroup) kind: Kind,
}

/// What may be done with a device: `MKNOD`, `READ`, `WRITE` as in bpf(2)'s `BPF_DEVCG_ACC_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::cgroup) struct Access(u8);

/// What holds by default, and what is the other way around.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::cgroup) struct Policy {
    pub(in crate::cgroup) is_open: bool,
    pub(in crate::cgroup) exceptions: BTreeMap<Device, Access>,
}

/// One line for `devices.allow` or `devices.deny`. No device means all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cgroup) struct Change {
    pub(in crate::cgroup) is_allow: bool,
    pub(in crate::cgroup) device: Option<Device>,
    pub(in crate::cgroup) access: Access,
}

/// Why the rules have no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::cgroup) enum PolicyError {
    /// No letter of `rwm`, or another one.
    #[error("rule {index}: access {access:?} is not made of r, w and m")]
    Access { index: usize, access: String },
    /// Only files of devices can have a rule.
    #[error("rule {index}: type {kind:?} is not a, b or c")]
    Type { index: usize, kind: String },
    /// The kernel's numbers have 32 bits.
    #[error("rule {index}: {number} is no device number")]
    Number { index: usize, number: i64 },
    /// The kernel would ignore it on version 1.
    #[error("rule {index}: cannot take {device} {access} out of {wider} {wider_access}")]
    Hole {
        index: usize,
        device: Device,
        access: Access,
        wider: Device,
        wider_access: Access,
    },
    /// `devices.list` says what this code does not know.
    #[error("line {0:?} of devices.list is unknown")]
    List(String),
}

impl Access {
    /// bpf(2)'s `BPF_DEVCG_ACC_MKNOD`.
    const MKNOD: u8 = 1;
    /// bpf(2)'s `BPF_DEVCG_ACC_READ`.
    const READ: u8 = 2;
    /// bpf(2)'s `BPF_DEVCG_ACC_WRITE`.
    const WRITE: u8 = 4;
    /// Everything.
    pub(in crate::cgroup) const ALL: Self = Self(7);

    /// Reads letters as in `rwm`; nothing where there is none, or an unknown one.
    pub(in crate::cgroup) fn parse(letters: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in letters.chars() {
            bits |= match letter {
                'm' => Self::MKNOD,
                'r' => Self::READ,
                'w' => Self::WRITE,
                _ => return None,
            };
        }
        (bits != 0).then_some(Self(bits))
    }

    /// As the kernel's programs see it.
    pub(in crate::cgroup) fn bits(self) -> u8 {
        self.0
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::MKNOD, 'm')] {
            if self.0 & bit != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            Kind::Block => 'b',
            Kind::Char => 'c',
        };
        write!(f, "{kind} {}:{}", number(self.major), number(self.minor))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {
            Some(device) => write!(f, "{device} {}", self.access),
            None => write!(f, "a *:* rwm"),
        }
    }
}

/// What each container may use whatever its spec says, as with runc: make any device file, and use those that
/// the OCI runtime spec gives to each container.
///
/// Source: OCI runtime spec, "Default Devices"; the list was compared with runc 1.1's.
fn always_allowed() -> impl Iterator<Item = (Device, Access)> {
    const CHAR: [(u32, Option<u32>); 8] = [
        (1, Some(3)),
        (1, Some(8)),
        (1, Some(7)),
        (5, Some(0)),
        (1, Some(5)),
        (1, Some(9)),
        (136, None),
        (5, Some(2)),
    ];
    let any = |kind| Device {
        major: None,
        minor: None,
        kind,
    };
    let make = Access(Access::MKNOD);
    [(any(Kind::Char), make), (any(Kind::Block), make)]
        .into_iter()
        .chain(CHAR.map(|(major, minor)| {
            let major = Some(major);
            let kind = Kind::Char;
            (Device { major, minor, kind }, Access::ALL)
        }))
}

impl Policy {
    /// What the spec's rules mean, followed by what each container may use.
    pub(in crate::cgroup) fn of_rules(rules: &[LinuxDeviceCgroup]) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            let access = rule.access().as_deref().unwrap_or("");
            let access = Access::parse(access).ok_or_else(|| PolicyError::Access {
                index,
                access: access.to_owned(),
            })?;
            match kind_of(index, rule.typ())? {
                None => {
                    policy = Self {
                        is_open: rule.allow(),
                        exceptions: BTreeMap::new(),
                    };
                }
                Some(kind) => {
                    let device = Device {
                        kind,
                        major: number_of(index, rule.major())?,
                        minor: number_of(index, rule.minor())?,
                    };
                    policy.apply(index, rule.allow(), device, access)?;
                }
            }
        }
        for (device, access) in always_allowed() {
            policy.apply(rules.len(), true, device, access)?;
        }
        Ok(policy)
    }

    /// Reads `devices.list`. Of an open policy the kernel does not tell the exceptions.
    pub(in crate::cgroup) fn of_list(list: &str) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        for line in list.lines() {
            if line.starts_with('a') {
                return Ok(Self {
                    is_open: true,
                    exceptions: BTreeMap::new(),
                });
            }
            let (device, access) =
                parse_line(line).ok_or_else(|| PolicyError::List(line.to_owned()))?;
            policy.except(device, access);
        }
        Ok(policy)
    }

    /// One rule after the others.
    fn apply(
        &mut self,
        index: usize,
        is_allow: bool,
        device: Device,
        access: Access,
    ) -> Result<(), PolicyError> {
        if is_allow != self.is_open {
            self.except(device, access);
            return Ok(());
        }
        for wider in device.wider() {
            let wider_access = self.exceptions.get(&wider).copied().unwrap_or_default();
            if !wider_access.and(access).is_empty() {
                return Err(PolicyError::Hole {
                    index,
                    device,
                    access,
                    wider,
                    wider_access,
                });
            }
        }
        if let Some(old) = self.exceptions.get_mut(&device) {
            *old = old.without(access);
            if old.is_empty() {
                self.exceptions.remove(&device);
            }
        }
        Ok(())
    }

    fn except(&mut self, device: Device, access: Access) {
        let old = self.exceptions.entry(device).or_default();
        *old = old.with(access);
    }

    /// What to write so that a cgroup with this policy gets `target`, without refusing in between what both
    /// allow, where that can be.
    pub(in crate::cgroup) fn changes_to(&self, target: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let nothing = BTreeMap::new();
        let mut old = &self.exceptions;
        if self.is_open || self.is_open != target.is_open {
            changes.push(Change {
                is_allow: target.is_open,
                device: None,
                access: Access::ALL,
            });
            old = &nothing;
        }
        let mut differ = |from: &BTreeMap<Device, Access>, to: &BTreeMap<_, _>, is_allow| {
            for (device, access) in from {
                let access = access.without(to.get(device).copied().unwrap_or_default());
                if !access.is_empty() {
                    changes.push(Change {
                        is_allow,
                        device: Some(*device),
                        access,
                    });
                }
            }
        };
        differ(old, &target.exceptions, target.is_open);
        differ(&target.exceptions, old, !target.is_open);
        changes
    }
}

impl Device {
    /// The devices that this is one of.
    fn wider(self) -> impl Iterator<Item = Self> {
        let any_major = Self {
            major: None,
            ..self
        };
        let any_minor = Self {
            minor: None,
            ..self
        };
        let any = Self {
            major: None,
            minor: None,
            ..self
        };
        [any_major, any_minor, any]
            .into_iter()
            .filter(move |wider| *wider != self)
    }
}

/// Nothing for a rule about all devices.
fn kind_of(index: usize, kind: Option<LinuxDeviceType>) -> Result<Option<Kind>, PolicyError> {
    match kind {
        None | Some(LinuxDeviceType::A) => Ok(None),
        Some(LinuxDeviceType::B) => Ok(Some(Kind::Block)),
        Some(LinuxDeviceType::C) => Ok(Some(Kind::Char)),
        Some(kind @ (LinuxDeviceType::U | LinuxDeviceType::P)) => Err(PolicyError::Type {
            index,
            kind: kind.as_str().to_owned(),
        }),
    }
}

/// Nothing for each number: none is given, or -1.
fn number_of(index: usize, number: Option<i64>) -> Result<Option<u32>, PolicyError> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| PolicyError::Number { index, number }),
    }
}

/// A line of `devices.list`, as in `c 1:3 rwm`.
fn parse_line(line: &str) -> Option<(Device, Access)> {
    let mut words = line.split_ascii_whitespace();
    let kind = match words.next()? {
        "b" => Kind::Block,
        "c" => Kind::Char,
        _ => return None,
    };
    let (major, minor) = words.next()?.split_once(':')?;
    let number = |text: &str| match text {
        "*" => Some(None),
        text => text.parse().ok().map(Some),
    };
    let device = Device {
        kind,
        major: number(major)?,
        minor: number(minor)?,
    };
    Some((device, Access::parse(words.next()?)?))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Rules as in `+c 1:3 rwm, -a`.
    fn rules(text: &str) -> Vec<LinuxDeviceCgroup> {
        let rule = |text: &str| {
            let mut words = text[1..].split(' ');
            let mut value = serde_json::json!({ "allow": text.starts_with('+') });
            value["type"] = words.next().unwrap().into();
            if let Some((major, minor)) = words.next().and_then(|word| word.split_once(':')) {
                for (name, number) in [("major", major), ("minor", minor)] {
                    if number != "*" {
                        value[name] = number.parse::<i64>().unwrap().into();
                    }
                }
            }
            value["access"] = words.next().unwrap_or("rwm").into();
            serde_json::from_value(value).unwrap()
        };
        text.split(", ")
            .filter(|t| !t.is_empty())
            .map(rule)
            .collect()
    }

    #[track_caller]
    fn check(from: &str, to: &str, expected: Expect) {
        let list = from.replace(", ", "\n");
        let old = Policy::of_list(&list).unwrap();
        let text = match Policy::of_rules(&rules(to)) {
            Ok(policy) => old
                .changes_to(&policy)
                .iter()
                .map(|change| format!("{}{change}", if change.is_allow { '+' } else { '-' }))
                .collect::<Vec<_>>()
                .join("\n"),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn a_fresh_container_is_closed_but_for_the_common_devices() {
        check(
            "a *:* rwm",
            "-a",
            expect![[r#"
            -a *:* rwm
            +b *:* m
            +c *:* m
            +c 1:3 rwm
            +c 1:5 rwm
            +c 1:7 rwm
            +c 1:8 rwm
            +c 1:9 rwm
            +c 5:0 rwm
            +c 5:2 rwm
            +c 136:* rwm"#]],
        );
    }

    #[test]
    fn later_rules_win() {
        check(
            "a *:* rwm",
            "-a, +c 10:200, -c 10:200 w, +a, -b 8:0 w",
            expect![[r#"
            +a *:* rwm
            -b 8:0 w"#]],
        );
    }

    #[test]
    fn an_update_writes_the_difference_only() {
        let common = "b *:* m, c *:* m, c 1:3 rwm, c 1:5 rwm, c 1:7 rwm, c 1:8 rwm, c 1:9 rwm, c 5:0 rwm, \
                      c 5:2 rwm, c 136:* rwm";
        check(
            &format!("{common}, c 10:229 rw"),
            "-a, +c 10:200 r",
            expect![[r#"
            -c 10:229 rw
            +c 10:200 r"#]],
        );
    }

    #[test]
    fn rules_without_meaning_are_refused() {
        check(
            "",
            "-a, +c 1:* r, -c 1:3 r",
            expect!["rule 2: cannot take c 1:3 r out of c 1:* r"],
        );
        check(
            "",
            "+c 1:3 x",
            expect![[r#"rule 0: access "x" is not made of r, w and m"#]],
        );
        check(
            "",
            "+p 1:3",
            expect![[r#"rule 0: type "p" is not a, b or c"#]],
        );
        check(
            "",
            "+c 4294967296:3",
            expect!["rule 0: 4294967296 is no device number"],
        );
        check("", "+c -2:3", expect!["rule 0: -2 is no device number"]);
    }
}
