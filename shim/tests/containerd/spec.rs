//! The OCI spec that each case starts from: what containerd's own client makes of an image.

use serde_json::{Value, json};

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Source: containerd 1.6, `oci/spec.go`, `populateDefaultUnixSpec`.
pub(crate) fn default(cgroup: &str) -> Value {
    json!({
        "ociVersion": "1.0.2-dev",
        "process": process(&["true"]),
        "root": { "path": "rootfs" },
        "mounts": mounts(),
        "linux": {
            "cgroupsPath": cgroup,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "network" }
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi"
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"
            ]
        }
    })
}

/// A process as the default spec has it.
pub(crate) fn process(args: &[&str]) -> Value {
    json!({
        "args": args,
        "cwd": "/",
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "noNewPrivileges": true,
        "user": { "uid": 0, "gid": 0 },
        "capabilities": {
            "bounding": CAPABILITIES, "permitted": CAPABILITIES, "effective": CAPABILITIES
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }]
    })
}

fn mounts() -> Value {
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc",
          "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
          "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
          "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs",
          "options": ["nosuid", "noexec", "nodev", "ro"] },
        { "destination": "/run", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }
    ])
}

/// Adds to a list of the spec that may be absent: `add(spec, "/linux/devices", json!({…}))`.
pub(crate) fn add(spec: &mut Value, list: &str, item: Value) {
    let mut at = spec;
    for name in list.trim_start_matches('/').split('/') {
        at = &mut at[name];
    }
    if at.is_null() {
        *at = json!([]);
    }
    at.as_array_mut().unwrap().push(item);
}

/// Adds a mount: `mount(spec, "tmpfs", "tmpfs", "/mnt", "ro,size=1m")`.
pub(crate) fn mount(spec: &mut Value, kind: &str, source: &str, target: &str, options: &str) {
    let options: Vec<_> = options.split(',').filter(|text| !text.is_empty()).collect();
    let item = json!({ "destination": target, "type": kind, "source": source, "options": options });
    add(spec, "mounts", item);
}

/// Adds a namespace, or makes the one of this type another: `namespace(spec, "network", Some("/proc/1/ns/net"))`.
pub(crate) fn namespace(spec: &mut Value, kind: &str, path: Option<&str>) {
    no_namespace(spec, kind);
    let mut item = json!({ "type": kind });
    if let Some(path) = path {
        item["path"] = path.into();
    }
    add(spec, "linux/namespaces", item);
}

/// Takes a namespace out, so that the container shares the host's.
pub(crate) fn no_namespace(spec: &mut Value, kind: &str) {
    let all = spec["linux"]["namespaces"].as_array_mut().unwrap();
    all.retain(|namespace| namespace["type"] != kind);
}

/// Gives the container a user namespace in which its root is `first` of the host.
pub(crate) fn user_namespace(spec: &mut Value, first: u32) {
    namespace(spec, "user", None);
    let mapping = json!([{ "containerID": 0, "hostID": first, "size": 65536 }]);
    spec["linux"]["uidMappings"] = mapping.clone();
    spec["linux"]["gidMappings"] = mapping;
}
