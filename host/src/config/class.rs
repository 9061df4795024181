//! Classes of sandboxes: what operators tune.

use std::{collections::BTreeMap, fmt, fs, os::unix::fs::MetadataExt, str::FromStr, sync::Arc};

use arc_swap::ArcSwap;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::id::ClassName;

/// containerd's name of the project's own runtime.
pub const OWN_RUNTIME: &str = "io.containerd.opr.v1";
/// A class of sandboxes: the operator's knob.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Class {
    /// containerd's runtime, as in `io.containerd.runc.v2`. Default: the project's own, `io.containerd.opr.v1`.
    pub runtime: String,
    /// What the sandbox may reach.
    pub outbound: Outbound,
    /// What of the root file system it may write.
    pub root: Root,
    /// Size of the tmpfs that it may write to, where its root is not on disk. MiB; default 64.
    #[serde(deserialize_with = "at_least_one")]
    pub scratch_mib: u64,
    /// What it may write to the disk, where its root is there: reserved at its start, half of what is free at most.
    /// MiB; default 4,096; 0 is no limit.
    #[serde(deserialize_with = "disk")]
    pub disk_mib: u64,
    /// Processes and threads, at most. Default 512.
    #[serde(rename = "pids.max", deserialize_with = "at_least_one")]
    pub pids_max: u32,
    /// Share of the processors against other classes, 1 to 10,000. Default 100.
    #[serde(rename = "cpu.weight", deserialize_with = "weight")]
    pub cpu_weight: u64,
    /// Processors for the whole class, in cores. Default: no limit.
    #[serde(rename = "cpu.max", skip_serializing_if = "Option::is_none")]
    pub cpu_max: Option<Cores>,
    /// Memory for the whole class. MiB; default: no limit.
    #[serde(rename = "memory.max", skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u64>,
    /// Memory from which the class is slowed down. MiB; default: none. Version 2 only.
    #[serde(rename = "memory.high", skip_serializing_if = "Option::is_none")]
    pub memory_high_mib: Option<u64>,
    /// Memory of the class that is not taken from it for others. MiB; default: none. Version 2 only.
    #[serde(rename = "memory.min", skip_serializing_if = "Option::is_none")]
    pub memory_min_mib: Option<u64>,
    /// Swap for the whole class. MiB; default: no limit. What a sandbox has a limit of memory for never swaps.
    #[serde(rename = "memory.swap.max", skip_serializing_if = "Option::is_none")]
    pub memory_swap_max_mib: Option<u64>,
    /// Share of the disks, 1 to 10,000. Default 100.
    #[serde(rename = "io.weight", deserialize_with = "weight")]
    pub io_weight: u64,
    /// What the whole class may read and write, by disk, as in `["/dev/vda rbps=104857600 wiops=500"]`. Default: no limit.
    #[serde(rename = "io.max", skip_serializing_if = "Vec::is_empty")]
    pub io_max: Vec<IoMax>,
}

/// What a sandbox may reach. Never another sandbox, the host's ports or link-local addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outbound {
    /// Nothing.
    None,
    /// Everything that the host can, by address translation.
    Nat,
    /// The host's own network, all of it: no isolation.
    Host,
}

/// What of its root file system a sandbox may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// Nothing but the mounts that are writable.
    ReadOnly,
    /// All of it, into the sandbox's bounded tmpfs.
    Tmpfs,
    /// All of it, into a file system of its own under `state_dir`, with what else it may write.
    Disk,
}

/// Processors, as in 1.5.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct Cores(f64);

/// A limit of one disk, as version 2 spells it; the disk by number or by its file.
///
/// Source: `io.max` of cgroup-v2.rst.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IoMax {
    device: String,
    limits: BTreeMap<String, u64>,
}

/// The classes that hold now. A reload replaces them, for sandboxes that run as for new ones.
#[derive(Debug)]
pub struct Classes(ArcSwap<BTreeMap<ClassName, Class>>);

impl Cores {
    /// How many.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Cores {
    type Error = String;

    fn try_from(cores: f64) -> Result<Self, String> {
        if cores.is_finite() && cores >= 0.01 {
            Ok(Self(cores))
        } else {
            Err(format!("{cores} is no number of processors, 0.01 or more"))
        }
    }
}

impl IoMax {
    /// The disk as `major:minor`.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn number(&self) -> std::io::Result<String> {
        if !self.device.starts_with('/') {
            return Ok(self.device.clone());
        }
        let device = fs::metadata(&self.device)?.rdev();
        Ok(format!(
            "{}:{}",
            rustix::fs::major(device),
            rustix::fs::minor(device)
        ))
    }

    /// `rbps`, `wbps`, `riops` and `wiops`, those that are limited: bytes or calls a second.
    pub fn limits(&self) -> &BTreeMap<String, u64> {
        &self.limits
    }
}

impl FromStr for IoMax {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not as in \"/dev/vda rbps=104857600 wiops=500\" or \"8:0 wbps=1048576\""
            )
        };
        let mut words = text.split_whitespace();
        let device = words.next().ok_or_else(wrong)?;
        let is_number = device.split_once(':').is_some_and(|(major, minor)| {
            major.parse::<u32>().is_ok() && minor.parse::<u32>().is_ok()
        });
        if !is_number && !device.starts_with("/dev/") {
            return Err(wrong());
        }
        let limit = |word: &str| {
            let (key, value) = word.split_once('=')?;
            let is_known = ["rbps", "wbps", "riops", "wiops"].contains(&key);
            is_known.then_some((
                key.to_owned(),
                value.parse().ok().filter(|value| *value > 0)?,
            ))
        };
        let limits: Option<BTreeMap<_, _>> = words.map(limit).collect();
        Ok(Self {
            device: device.into(),
            limits: limits
                .filter(|limits| !limits.is_empty())
                .ok_or_else(wrong)?,
        })
    }
}

impl TryFrom<String> for IoMax {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for IoMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device)?;
        self.limits
            .iter()
            .try_for_each(|(key, value)| write!(f, " {key}={value}"))
    }
}

impl From<IoMax> for String {
    fn from(limit: IoMax) -> Self {
        limit.to_string()
    }
}

impl Classes {
    /// These.
    pub fn new(classes: BTreeMap<ClassName, Class>) -> Self {
        Self(ArcSwap::from_pointee(classes))
    }

    /// One of them.
    pub fn get(&self, name: &ClassName) -> Option<Class> {
        self.0.load().get(name).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Arc<BTreeMap<ClassName, Class>> {
        self.0.load_full()
    }

    /// Others from now on.
    pub fn set(&self, classes: BTreeMap<ClassName, Class>) {
        self.0.store(Arc::new(classes));
    }
}

impl Default for Class {
    fn default() -> Self {
        Self {
            runtime: OWN_RUNTIME.into(),
            outbound: Outbound::Nat,
            root: Root::ReadOnly,
            scratch_mib: 64,
            disk_mib: 2048,
            pids_max: 512,
            cpu_weight: 100,
            cpu_max: None,
            memory_max_mib: None,
            memory_high_mib: None,
            memory_min_mib: None,
            memory_swap_max_mib: None,
            io_weight: 100,
            io_max: Vec::new(),
        }
    }
}

/// Functions deployed here run in `function`, what clients of the executor API bring in `runtime`, builds in `build`.
pub(super) fn default_classes() -> BTreeMap<ClassName, Class> {
    let runtime = Class {
        root: Root::Tmpfs,
        scratch_mib: 512,
        ..Class::default()
    };
    let build = Class {
        root: Root::Disk,
        pids_max: 4096,
        // Where nobody else wants the processors, builds have them all.
        cpu_weight: 25,
        ..Class::default()
    };
    [
        ("function", Class::default()),
        ("runtime", runtime),
        ("build", build),
    ]
    .into_iter()
    .map(|(name, class)| {
        (
            ClassName::try_new(name).expect("a constant that is a name"),
            class,
        )
    })
    .collect()
}

/// As the kernel takes it.
fn weight<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    let weight = u64::deserialize(value)?;
    if (1..=10_000).contains(&weight) {
        Ok(weight)
    } else {
        Err(D::Error::custom(format!("{weight} is not from 1 to 10000")))
    }
}

pub(super) fn at_least_one<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default + PartialEq>(
    value: D,
) -> Result<T, D::Error> {
    let number = T::deserialize(value)?;
    if number == T::default() {
        Err(D::Error::custom("0 is not 1 or more"))
    } else {
        Ok(number)
    }
}

/// What a file system needs for itself is a part of it.
fn disk<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    let mib = u64::deserialize(value)?;
    if (1..32).contains(&mib) {
        Err(D::Error::custom(format!("{mib} is not 0, or 32 or more")))
    } else {
        Ok(mib)
    }
}
