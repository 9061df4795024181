//! When a new instance may be made: how much memory all of them may have, and how busy the machine may be.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// When a new instance may be made. What is unset is not looked at; instances that are there are never refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// What the memory limits of all instances add up to, at most: MiB, or a share of the machine's memory as in
    /// `"75%"`. Default: none, since few instances come near their limits.
    #[serde(rename = "memory.budget", skip_serializing_if = "Option::is_none")]
    pub memory_budget: Option<Budget>,
    /// How long an instance waits for room, and for the pressure to fall, before it is refused. Milliseconds;
    /// default 5,000.
    pub wait_ms: u64,
    /// Instances that may wait; more are refused. Default 256.
    #[serde(deserialize_with = "super::class::at_least_one")]
    pub queue: usize,
    /// The folder that pressure is read from: that of the machine, or a cgroup's. Default `/proc/pressure`.
    #[serde(deserialize_with = "absolute")]
    pub pressure_dir: PathBuf,
    /// How much of the time may be lost waiting for a processor.
    #[serde(rename = "cpu.pressure", skip_serializing_if = "Thresholds::is_unset")]
    pub cpu_pressure: Thresholds,
    /// How much of the time may be lost waiting for memory.
    #[serde(
        rename = "memory.pressure",
        skip_serializing_if = "Thresholds::is_unset"
    )]
    pub memory_pressure: Thresholds,
    /// How much of the time may be lost waiting for disks.
    #[serde(rename = "io.pressure", skip_serializing_if = "Thresholds::is_unset")]
    pub io_pressure: Thresholds,
}

/// Above which pressure nothing new is made, as in `{ some = 80, full = 20 }`.
///
/// Source: Documentation/accounting/psi.rst: `avg10` of the lines `some` and `full`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Percent of the last ten seconds in which something waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub some: Option<Percent>,
    /// Percent of them in which all that could run waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<Percent>,
}

/// A share of time: more than 0, 100 at most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct Percent(f64);

/// Memory for all instances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// So much.
    Mib(u64),
    /// This share of the machine's memory, in percent. More than 100 promises more than there is.
    Percent(f64),
}

impl Admission {
    /// The thresholds by the name of what is waited for.
    pub fn thresholds(&self) -> [(&'static str, Thresholds); 3] {
        [
            ("cpu", self.cpu_pressure),
            ("memory", self.memory_pressure),
            ("io", self.io_pressure),
        ]
    }
}

impl Thresholds {
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }

    /// Those that are set, by the name of their line.
    pub fn lines(self) -> impl Iterator<Item = (&'static str, f64)> {
        let lines = [("some", self.some), ("full", self.full)];
        let set = |(line, limit): (_, Option<Percent>)| Some((line, limit?.0));
        lines.into_iter().filter_map(set)
    }
}

impl Budget {
    /// In bytes, on a machine with so many.
    pub fn bytes(self, machine: u64) -> u64 {
        match self {
            Self::Mib(mib) => mib.saturating_mul(1 << 20),
            Self::Percent(percent) => (machine as f64 * percent / 100.0) as u64,
        }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            memory_budget: None,
            wait_ms: 5_000,
            queue: 256,
            pressure_dir: "/proc/pressure".into(),
            cpu_pressure: Thresholds::default(),
            memory_pressure: Thresholds::default(),
            io_pressure: Thresholds::default(),
        }
    }
}

impl TryFrom<f64> for Percent {
    type Error = String;

    fn try_from(percent: f64) -> Result<Self, String> {
        if percent > 0.0 && percent <= 100.0 {
            Ok(Self(percent))
        } else {
            Err(format!(
                "{percent} is no percentage: more than 0, 100 at most"
            ))
        }
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Mib(mib) => serializer.serialize_u64(*mib),
            Self::Percent(percent) => serializer.serialize_str(&format!("{percent}%")),
        }
    }
}

impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BudgetVisitor)
    }
}

struct BudgetVisitor;

impl de::Visitor<'_> for BudgetVisitor {
    type Value = Budget;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MiB, 1 or more, or a share of the machine's memory from \"1%\" to \"1000%\"")
    }

    fn visit_u64<E: de::Error>(self, mib: u64) -> Result<Budget, E> {
        if mib == 0 {
            return Err(E::invalid_value(de::Unexpected::Unsigned(0), &self));
        }
        Ok(Budget::Mib(mib))
    }

    fn visit_i64<E: de::Error>(self, mib: i64) -> Result<Budget, E> {
        match u64::try_from(mib) {
            Ok(mib) => self.visit_u64(mib),
            Err(_) => Err(E::invalid_value(de::Unexpected::Signed(mib), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Budget, E> {
        let percent = text
            .strip_suffix('%')
            .and_then(|text| text.trim().parse().ok());
        match percent.filter(|percent| (1.0..=1000.0).contains(percent)) {
            Some(percent) => Ok(Budget::Percent(percent)),
            None => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }
}

fn absolute<'de, D: Deserializer<'de>>(value: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(value)?;
    if path.is_absolute() {
        Ok(path)
    } else {
        let shown = path.display();
        Err(de::Error::custom(format!("{shown} is no absolute path")))
    }
}
