//! The OCI runtime spec (1.0.2) of a sandbox: what its processes see and what is taken from them.

use std::{collections::BTreeMap, path::Path};

use oci_spec::runtime::{LinuxResources, Spec};
use opr_images::ImageConfig;
use serde_json::{Value, json};

use super::{SandboxSpec, Source, rootfs::OVERLAYS, seccomp, slots::Slot};
use crate::{
    config::{Class, Limits, OWN_RUNTIME, Root},
    sys::IDS,
};

/// What a root process in a container needs to install packages and drop its rights: own and open any
/// file of its own ids (CHOWN, DAC_OVERRIDE, FOWNER, FSETID), become another user (SETUID, SETGID),
/// end other users' processes (KILL), serve port 80 (NET_BIND_SERVICE). All of them hold only in the
/// sandbox's own user namespace.
const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
];
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Microseconds; the kernel's own default.
const CPU_PERIOD: u64 = 100_000;
const OPEN_FILES: u64 = 65_536;

/// All that a spec is made of.
pub(super) struct Parts<'a> {
    pub(super) sandbox: &'a SandboxSpec,
    pub(super) class: &'a Class,
    pub(super) image: &'a ImageConfig,
    pub(super) slot: &'a Slot,
    /// The sandbox's folder: `scratch/` and `etc/` are in it.
    pub(super) dir: &'a Path,
    /// As in `/opr/function/<id>`.
    pub(super) cgroup: &'a str,
    /// Uid and gid that the image's `user` means.
    pub(super) user: (u32, u32),
    /// Sandboxes of one group share one process of the project's own shim.
    pub(super) group: &'a str,
}

/// The spec of one sandbox.
pub(super) fn spec(parts: &Parts) -> serde_json::Result<Spec> {
    serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": parts.class.root == Root::ReadOnly },
        "hostname": parts.sandbox.hostname,
        "annotations": annotations(parts),
        "process": process(parts),
        "mounts": mounts(parts),
        "linux": {
            "namespaces": namespaces(parts.slot),
            "uidMappings": [mapping(parts.slot)],
            "gidMappings": [mapping(parts.slot)],
            "cgroupsPath": parts.cgroup,
            "resources": resources(parts),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp::filter(),
        },
    }))
}

/// A shim of runc's makes processes of its own for each container: there, one that fails harms no other.
fn annotations(parts: &Parts) -> Value {
    if parts.class.runtime == OWN_RUNTIME {
        json!({ "io.containerd.runc.v2.group": parts.group })
    } else {
        json!({})
    }
}

/// Limits as containerd's `Update` takes them.
pub(super) fn limits(limits: &Limits) -> serde_json::Result<LinuxResources> {
    serde_json::from_value(json!({ "cpu": cpu(limits), "memory": memory(limits) }))
}

fn process(parts: &Parts) -> Value {
    // A process in a user namespace may not raise what containerd gave its own children.
    let own_limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let open_files = own_limit.map_or(OPEN_FILES, |limit| limit.min(OPEN_FILES));
    let SandboxSpec {
        command,
        working_dir,
        terminal,
        ..
    } = parts.sandbox;
    let own = || {
        parts
            .image
            .entrypoint
            .iter()
            .chain(&parts.image.cmd)
            .cloned()
            .collect()
    };
    let args: Vec<String> = command.clone().unwrap_or_else(own);
    let image_dir = Some(parts.image.working_dir.as_str()).filter(|dir| !dir.is_empty());
    let cwd = working_dir
        .as_deref()
        .unwrap_or(Path::new(image_dir.unwrap_or("/")));
    json!({
        "terminal": terminal,
        "user": { "uid": parts.user.0, "gid": parts.user.1 },
        "args": args,
        "env": environment(parts),
        "cwd": cwd,
        "noNewPrivileges": true,
        "oomScoreAdj": 500,
        "capabilities": {
            "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            "inheritable": [], "ambient": [],
        },
        "rlimits": [
            { "type": "RLIMIT_NOFILE", "hard": open_files, "soft": open_files },
            { "type": "RLIMIT_CORE", "hard": 0, "soft": 0 },
        ],
    })
}

/// The image's variables, then the sandbox's; the later value of one name wins.
fn environment(parts: &Parts) -> Vec<String> {
    let mut values = BTreeMap::from([("PATH", PATH), ("HOSTNAME", &parts.sandbox.hostname)]);
    if parts.sandbox.terminal {
        values.insert("TERM", "xterm");
    }
    values.extend(
        parts
            .image
            .env
            .iter()
            .filter_map(|line| line.split_once('=')),
    );
    values.extend(
        parts
            .sandbox
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    values
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn mounts(parts: &Parts) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let closed = ["nosuid", "noexec", "nodev"];
    let mut all = vec![
        mount("/proc", "proc", &closed),
        mount(
            "/dev",
            "tmpfs",
            &[
                "nosuid",
                "strictatime",
                "mode=755",
                "size=64k",
                "nr_inodes=1k",
            ],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
            ],
        ),
        mount("/dev/mqueue", "mqueue", &closed),
    ];
    let read_only = ["nosuid", "noexec", "nodev", "ro"];
    if parts.slot.net.is_some() {
        all.push(mount("/sys", "sysfs", &read_only));
        all.push(mount("/sys/fs/cgroup", "cgroup", &read_only));
    }
    let shm = parts.dir.join("scratch/.shm");
    all.push(bind(
        &shm,
        Path::new("/dev/shm"),
        &["rw", "nosuid", "noexec", "nodev"],
    ));
    for name in ["resolv.conf", "hosts", "hostname"] {
        let target = Path::new("/etc").join(name);
        all.push(bind(
            &parts.dir.join("etc").join(name),
            &target,
            &["ro", "nosuid", "nodev"],
        ));
    }
    all.extend(parts.sandbox.mounts.iter().enumerate().map(|(n, mount)| {
        let source = match &mount.source {
            Source::Host(path) => path.clone(),
            Source::Scratch(name) => parts.dir.join("scratch").join(name),
            Source::Overlay(_) => parts.dir.join(OVERLAYS).join(n.to_string()),
        };
        let access = if mount.is_writable { "rw" } else { "ro" };
        bind(&source, &mount.target, &[access, "nosuid", "nodev"])
    }));
    all
}

fn bind(source: &Path, target: &Path, options: &[&str]) -> Value {
    let options = [&["rbind", "rprivate"], options].concat();
    json!({ "destination": target, "type": "bind", "source": source, "options": options })
}

fn namespaces(slot: &Slot) -> Vec<Value> {
    let mut all: Vec<_> = ["mount", "pid", "ipc", "uts", "cgroup"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    all.push(json!({ "type": "user", "path": slot.user }));
    if let Some((path, _)) = &slot.net {
        all.push(json!({ "type": "network", "path": path }));
    }
    all
}

fn mapping(slot: &Slot) -> Value {
    json!({ "containerID": 0, "hostID": slot.first_id, "size": IDS })
}

fn resources(parts: &Parts) -> Value {
    let mut resources = json!({
        "devices": devices(),
        "cpu": cpu(&parts.sandbox.limits),
        "pids": { "limit": parts.class.pids_max },
    });
    if parts.sandbox.limits.memory_bytes > 0 {
        resources["memory"] = memory(&parts.sandbox.limits);
    }
    resources
}

/// Nothing but null, zero, full, tty, random, urandom, ptmx and terminals.
fn devices() -> Value {
    let device = |major: i64, minor: Option<i64>| json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" });
    let mut all = vec![json!({ "allow": false, "access": "rwm" })];
    all.extend(
        [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)]
            .map(|(major, minor)| device(major, Some(minor))),
    );
    all.push(json!({ "allow": true, "type": "c", "major": 136, "access": "rwm" }));
    Value::Array(all)
}

fn cpu(limits: &Limits) -> Value {
    if limits.cpus <= 0.0 {
        return json!({ "quota": -1, "period": CPU_PERIOD });
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a float becomes the nearest i64"
    )]
    let quota = ((limits.cpus * CPU_PERIOD as f64) as i64).max(1_000);
    json!({ "quota": quota, "period": CPU_PERIOD })
}

/// Memory without swap: what goes beyond is killed.
fn memory(limits: &Limits) -> Value {
    let limit = match i64::try_from(limits.memory_bytes) {
        Ok(bytes) if bytes > 0 => bytes,
        _ => -1,
    };
    json!({ "limit": limit, "swap": limit })
}
