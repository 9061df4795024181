//! All that a node leaves on the machine while it runs, found by the names that are its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use opr_host::config::Config;
use sha2::{Digest, Sha256};

/// What there is of one node, by kind. A kind of which nothing is there is absent.
pub(crate) type Traces = BTreeMap<&'static str, Vec<String>>;

pub(crate) fn traces(config: &Config) -> Traces {
    let mut all = BTreeMap::from([
        ("cgroups", cgroups(&config.containerd.namespace)),
        ("folders", folders(config)),
        ("links", links(&config.sandbox.bridge)),
        ("mounts", mounts(config)),
        ("processes", processes(config)),
        ("rules", rules(config)),
    ]);
    all.retain(|_, found| !found.is_empty());
    all
}

/// The socket of the shim of all sandboxes, which is named after their group in one folder for all nodes
/// (containerd's `runtime/v2/shim.SocketAddress`).
pub(crate) fn shim_socket(config: &Config) -> PathBuf {
    let namespace = &config.containerd.namespace;
    let name = config.containerd_socket().join(namespace).join(namespace);
    let hash: String = Sha256::digest(name.as_os_str().as_encoded_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Path::new("/run/containerd/s").join(hash)
}

fn cgroups(namespace: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
        if line.contains(" - cgroup") {
            let root = Path::new(line.split(' ').nth(4).unwrap());
            collect_dirs(&root.join(namespace), &mut found);
        }
    }
    found
}

fn collect_dirs(dir: &Path, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    found.push(dir.display().to_string());
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_dirs(&entry.path(), found);
        }
    }
}

fn folders(config: &Config) -> Vec<String> {
    [
        config.run_dir.join("sandboxes"),
        config.state_dir.join("sandboxes"),
        config.run_dir.join("slots"),
        config.run_dir.join("cni").join(&config.sandbox.bridge),
    ]
    .iter()
    .filter_map(|dir| fs::read_dir(dir).ok())
    .flatten()
    .map(|entry| entry.unwrap().path().display().to_string())
    .collect()
}

/// The bridge and its ports.
fn links(bridge: &str) -> Vec<String> {
    let link = Path::new("/sys/class/net").join(bridge);
    let Ok(ports) = fs::read_dir(link.join("brif")) else {
        return vec![];
    };
    ports
        .flatten()
        .map(|port| port.file_name().into_string().unwrap())
        .chain([bridge.to_owned()])
        .collect()
}

fn mounts(config: &Config) -> Vec<String> {
    let dirs = [&config.run_dir, &config.state_dir].map(|dir| dir.to_str().unwrap());
    lines_with(&fs::read_to_string("/proc/self/mountinfo").unwrap(), &dirs)
}

/// containerd, its shims and what they run, by their arguments or their cgroup.
fn processes(config: &Config) -> Vec<String> {
    let names = [
        config.run_dir.to_str().unwrap(),
        &config.containerd.namespace,
    ];
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().into_string().unwrap();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let read = |name| fs::read(entry.path().join(name)).unwrap_or_default();
        let text = |name| String::from_utf8_lossy(&read(name)).replace('\0', " ");
        let (command, groups) = (text("cmdline"), text("cgroup"));
        let is_known = |name: &&str| command.contains(*name) || groups.contains(*name);
        // One without arguments has ended, and waits for its parent's notice.
        if !command.is_empty() && names.iter().any(is_known) {
            found.push(format!("{pid} {command}"));
        }
    }
    found
}

fn rules(config: &Config) -> Vec<String> {
    let names = [&config.sandbox.bridge, &config.sandbox.subnet].map(String::as_str);
    ["iptables-save", "ip6tables-save"]
        .iter()
        .flat_map(|program| {
            let output = Command::new(program).output().unwrap();
            lines_with(&String::from_utf8_lossy(&output.stdout), &names)
        })
        .collect()
}

fn lines_with(text: &str, names: &[&str]) -> Vec<String> {
    text.lines()
        .filter(|line| names.iter().any(|name| line.contains(name)))
        .map(ToOwned::to_owned)
        .collect()
}
