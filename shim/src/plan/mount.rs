//! The mounts and devices of a container.

use std::path::{Path, PathBuf};

use nix::libc;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount, Spec};
use serde::{Deserialize, Serialize};

use super::{MountOptions, SpecError, clean, mount_options};
use crate::sys::{MountAttributes, attribute};

/// One mount of a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MountPlan {
    /// In the container, cleaned.
    pub(crate) target: PathBuf,
    pub(crate) source: MountSource,
}

/// What is mounted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum MountSource {
    /// A detached tree, complete with its attributes.
    Tree { descriptor: usize, is_folder: bool },
    /// A file system that the container's process makes in its namespaces.
    New(FileSystem),
    /// What version 1 of cgroups shows at `/sys/fs/cgroup`: a hierarchy in each folder.
    Hierarchies {
        attributes: MountAttributes,
        folders: Vec<Hierarchy>,
        /// Name and target, as in `cpu` and `cpu,cpuacct`.
        links: Vec<(String, String)>,
    },
    /// Changes what is mounted there.
    Remount(Change),
}

/// One of version 1's hierarchies, as a container sees it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    /// As in `cpu,cpuacct` or `name=systemd`.
    pub(crate) controllers: String,
    /// A detached tree of the container's own cgroup; None: it is mounted anew in the cgroup namespace.
    pub(crate) tree: Option<usize>,
}

impl Hierarchy {
    /// The name of its folder.
    pub(crate) fn folder(&self) -> &str {
        self.controllers
            .strip_prefix("name=")
            .unwrap_or(&self.controllers)
    }
}

/// A new file system.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileSystem {
    pub(crate) kind: String,
    pub(crate) source: String,
    /// Of the file system, as in `size=64k`.
    pub(crate) data: Vec<String>,
    pub(crate) change: Change,
    pub(crate) copies_up: bool,
}

/// How a mount is to be.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) attributes: MountAttributes,
    pub(crate) recursive: MountAttributes,
    pub(crate) propagation: Vec<Propagation>,
}

/// How mounts made below a mount spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Propagation {
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`.
    pub(crate) kind: u64,
    pub(crate) is_recursive: bool,
}

/// A file in `/dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub(crate) kind: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl From<MountOptions> for Change {
    fn from(options: MountOptions) -> Self {
        Self {
            attributes: options.attributes,
            recursive: options.recursive,
            propagation: options.propagation,
        }
    }
}

/// The mounts of a spec. `tree` makes the detached ones and answers their place and whether they are folders;
/// `hierarchies` tells those of version 1 of cgroups.
pub(crate) fn mounts<E: From<SpecError>>(
    spec: &Spec,
    mut tree: impl FnMut(&Mount, &MountOptions) -> Result<(usize, bool), E>,
    mut hierarchies: impl FnMut(MountAttributes) -> Result<Vec<Hierarchy>, E>,
) -> Result<Vec<MountPlan>, E> {
    let mut plans = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let target = clean(mount.destination());
        let kind = mount.typ().as_deref().unwrap_or_default();
        let mut options = mount_options(mount.options().as_deref().unwrap_or_default())?;
        let wrong =
            |reason: &str| SpecError::new("mounts", format!("{}: {reason}", target.display()));
        if target == Path::new("/") {
            return Err(wrong("is the root itself").into());
        }
        let is_bind = kind == "bind" || options.bind.is_some();
        check_in_proc(&target, kind, mount.source().as_deref(), is_bind)?;
        let source = if options.is_remount {
            MountSource::Remount(options.into())
        } else if is_bind {
            let (descriptor, is_folder) = tree(mount, &options)?;
            MountSource::Tree {
                descriptor,
                is_folder,
            }
        } else {
            if options.id_map.is_some() || has_own_maps(mount) {
                return Err(wrong("only bind mounts can be id-mapped").into());
            }
            let source = mount.source().as_deref().and_then(Path::to_str);
            let source = source.filter(|text| !text.is_empty()).unwrap_or(kind);
            match kind {
                "" => return Err(wrong("has no type").into()),
                "cgroup" if !is_unified() => {
                    linked(options.attributes, hierarchies(options.attributes)?)
                }
                _ => {
                    let data = std::mem::take(&mut options.data);
                    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
                    MountSource::New(FileSystem {
                        kind: kind.to_owned(),
                        source: source.to_owned(),
                        data,
                        copies_up: options.copies_up,
                        change: options.into(),
                    })
                }
            }
        };
        plans.push(MountPlan { target, source });
    }
    Ok(plans)
}

fn has_own_maps(mount: &Mount) -> bool {
    mount
        .uid_mappings()
        .as_ref()
        .is_some_and(|maps| !maps.is_empty())
        || mount
            .gid_mappings()
            .as_ref()
            .is_some_and(|maps| !maps.is_empty())
}

/// Nothing but a few files of figures may hide what `/proc` says.
fn check_in_proc(
    target: &Path,
    kind: &str,
    source: Option<&Path>,
    is_bind: bool,
) -> Result<(), SpecError> {
    /// As lxcfs replaces them, and what builds of kernels and cryptography are lied to about.
    const REPLACEABLE: [&str; 10] = [
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "sys/kernel/ns_last_pid",
        "sys/crypto/fips_enabled",
    ];
    let Ok(inside) = target.strip_prefix("/proc") else {
        return Ok(());
    };
    let is_procfs = || {
        let magic = source.and_then(|source| rustix::fs::statfs(source).ok());
        magic.is_some_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC)
    };
    let is_fine = if inside == Path::new("") {
        kind == "proc" || (is_bind && is_procfs())
    } else {
        REPLACEABLE.iter().any(|name| inside == Path::new(name)) || inside == Path::new("net/dev")
    };
    if is_fine {
        return Ok(());
    }
    let reason = format!(
        "{}: would hide what the kernel says there",
        target.display()
    );
    Err(SpecError::new("mounts", reason))
}

/// Whether the machine has version 2 of cgroups alone.
fn is_unified() -> bool {
    let found = rustix::fs::statfs("/sys/fs/cgroup");
    found.is_ok_and(|found| found.f_type == libc::CGROUP2_SUPER_MAGIC)
}

/// Controllers that share a hierarchy have links by their own names.
fn linked(attributes: MountAttributes, folders: Vec<Hierarchy>) -> MountSource {
    let shared = folders
        .iter()
        .map(Hierarchy::folder)
        .filter(|folder| folder.contains(','));
    let links =
        shared.flat_map(|folder| folder.split(',').map(|name| (name.into(), folder.into())));
    MountSource::Hierarchies {
        attributes,
        links: links.collect(),
        folders,
    }
}

/// Whether `/dev` is the container's own, so that devices are made in it.
pub(crate) fn is_dev_made(spec: &Spec) -> bool {
    let is_bound = |mount: &Mount| {
        let options = mount.options().iter().flatten();
        let mut names = options.map(String::as_str);
        clean(mount.destination()) == Path::new("/dev")
            && (mount.typ().as_deref() == Some("bind") || names.any(|name| name.ends_with("bind")))
    };
    !spec.mounts().iter().flatten().any(is_bound)
}

/// The devices that each container has, and those of the spec.
pub(crate) fn devices(spec: &Spec) -> Result<Vec<Device>, SpecError> {
    let usual = [
        ("/dev/null", 1, 3),
        ("/dev/random", 1, 8),
        ("/dev/full", 1, 7),
        ("/dev/tty", 5, 0),
        ("/dev/zero", 1, 5),
        ("/dev/urandom", 1, 9),
    ];
    let own = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_ref());
    let mut devices = Vec::new();
    for device in own.into_iter().flatten() {
        devices.push(of_spec(device)?);
    }
    for (path, major, minor) in usual {
        if devices
            .iter()
            .all(|device: &Device| device.path != Path::new(path))
        {
            devices.push(Device {
                path: path.into(),
                kind: libc::S_IFCHR,
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
            });
        }
    }
    Ok(devices)
}

fn of_spec(device: &LinuxDevice) -> Result<Device, SpecError> {
    let wrong = |reason: &str| {
        let path = device.path().display();
        SpecError::new("linux.devices", format!("{path}: {reason}"))
    };
    let kind = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(wrong("type a is no type of a device")),
    };
    let number = |number: i64| u32::try_from(number).map_err(|_| wrong("a number out of range"));
    let is_numbered = kind != libc::S_IFIFO;
    let path = clean(device.path());
    if path == Path::new("/") {
        return Err(wrong("is no path of a device"));
    }
    Ok(Device {
        path,
        kind,
        major: if is_numbered {
            number(device.major())?
        } else {
            0
        },
        minor: if is_numbered {
            number(device.minor())?
        } else {
            0
        },
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

impl MountOptions {
    /// What a bind mount's attributes become: as soon as one is set, those that are not set are cleared, as
    /// a remount of the same options would.
    pub(crate) fn of_bind(&self) -> MountAttributes {
        const ALL: u64 = attribute::RDONLY
            | attribute::NOSUID
            | attribute::NODEV
            | attribute::NOEXEC
            | attribute::NOSYMFOLLOW;
        let own = self.attributes;
        if own.set & ALL == 0 {
            return own;
        }
        MountAttributes {
            clear: own.clear | ALL & !own.set,
            ..own
        }
    }
}
