//! Holds the arrows of ARCHITECTURE.md: reads the manifests and the `use` lines.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A crate's rooms: what each may call, and those that all may. A room that is absent calls nobody but the latter.
struct Rooms {
    sources: &'static str,
    allowed: &'static [(&'static str, &'static [&'static str])],
    shared: &'static [&'static str],
}

const HOST: Rooms = Rooms {
    sources: "host/src",
    allowed: ALLOWED,
    shared: &["config", "id", "sys", "telemetry", "turns"],
};

const SHIM: Rooms = Rooms {
    sources: "shim/src",
    allowed: &[
        ("main", &["bootstrap"]),
        (
            "bootstrap",
            &["announce", "cgroup", "events", "launch", "socket", "task"],
        ),
        (
            "serve",
            &[
                "announce", "events", "launch", "reaper", "service", "socket", "task",
            ],
        ),
        ("announce", &["service", "task"]),
        ("service", &["events", "launch", "stdio", "task"]),
        ("task", &["cgroup", "events", "launch", "reaper", "stdio"]),
        ("stdio", &["launch", "reaper"]),
        ("launch", &["cgroup", "plan"]),
        ("fuzz", &["plan", "service"]),
        ("reaper", &[]),
        ("cgroup", &[]),
        ("events", &[]),
        ("plan", &[]),
        ("socket", &[]),
    ],
    shared: &["log", "program", "sys"],
};

const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "adapter", "api", "build", "code", "executor", "function", "rootless", "serve",
            "storage",
        ],
    ),
    (
        "serve",
        &[
            "adapter", "api", "build", "code", "executor", "function", "storage",
        ],
    ),
    (
        "api",
        &["adapter", "build", "executor", "function", "storage"],
    ),
    (
        "build",
        &["adapter", "code", "executor", "function", "storage"],
    ),
    ("function", &["executor"]),
    ("executor", &["adapter", "code", "storage"]),
    ("adapter", &["rootless"]),
    ("rootless", &[]),
    ("code", &[]),
    ("storage", &[]),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The room that a file of `host/src` belongs to: its first component without the ending.
fn room(file: &Path, root: &Path) -> String {
    let inside = file.strip_prefix(root).expect("a file below the root");
    let first = inside.components().next().expect("at least a name");
    first
        .as_os_str()
        .to_string_lossy()
        .trim_end_matches(".rs")
        .to_owned()
}

/// The rooms named by `crate::<room>` in product code (what stands before the test module).
fn calls(text: &str) -> Vec<String> {
    let product = text.split("#[cfg(test)]").next().unwrap_or(text);
    let mut rooms = Vec::new();
    for rest in product.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(group_heads(group)),
            None => rooms.push(head(rest)),
        }
    }
    rooms
}

/// The first names in a `use crate::{a::b, c::{d, e}}` group.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut start) = (0, Vec::new(), true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                heads.push(head(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    heads
}

fn head(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

#[test]
fn rooms_of_the_host_call_down_only() {
    HOST.check();
}

#[test]
fn rooms_of_the_shim_call_down_only() {
    SHIM.check();
}

impl Rooms {
    fn check(&self) {
        let root = workspace().join(self.sources);
        let mut files = Vec::new();
        sources(&root, &mut files);
        let mut wrong = Vec::new();
        for file in &files {
            let from = room(file, &root);
            let allowed = self.allowed.iter().find(|(name, _)| *name == from);
            let allowed = allowed.map_or(&[][..], |(_, to)| to);
            for to in calls(&fs::read_to_string(file).expect("a readable source")) {
                let is_known = root.join(&to).exists() || root.join(format!("{to}.rs")).exists();
                let is_fine = to == from
                    || self.shared.contains(&to.as_str())
                    || allowed.contains(&to.as_str());
                if is_known && !is_fine {
                    wrong.push(format!("{}: {from} -> {to}", file.display()));
                }
            }
        }
        assert!(files.len() > 5, "no sources found below {}", root.display());
        assert!(
            wrong.is_empty(),
            "arrows that ARCHITECTURE.md does not allow:\n{}",
            wrong.join("\n")
        );
    }
}

#[test]
fn images_knows_nothing_of_the_host() {
    let manifest = fs::read_to_string(workspace().join("images/Cargo.toml")).expect("a manifest");
    assert!(manifest.contains("name = \"opr-images\""));
    for absent in ["opr-host", "clap", "rusqlite", "prometheus"] {
        let product = manifest
            .split("[dev-dependencies]")
            .next()
            .unwrap_or(&manifest);
        assert!(!product.contains(absent), "images depends on {absent}");
    }
}

#[test]
fn the_shim_knows_nothing_of_open_runtimes() {
    let manifest = fs::read_to_string(workspace().join("shim/Cargo.toml")).expect("a manifest");
    assert!(manifest.contains("name = \"containerd-shim-opr-v1\""));
    let product = manifest
        .split("[dev-dependencies]")
        .next()
        .unwrap_or(&manifest);
    for absent in [
        "opr-",
        "hyper",
        "oci-client",
        "containerd-client",
        "rusqlite",
    ] {
        let of_itself = product.replace("containerd-shim-opr-v1", "");
        assert!(!of_itself.contains(absent), "shim depends on {absent}");
    }
}

#[test]
fn reads_the_rooms_out_of_use_lines() {
    let text = "use crate::{config::{Limits, env}, id::ClassName,\n    executor};\nuse crate::adapter::Output;\n#[cfg(test)]\nuse crate::api;";
    assert_eq!(calls(text), ["config", "id", "executor", "adapter"]);
}
