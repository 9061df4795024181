//! All that a node leaves on the machine while its containers live, found by the names that are its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::node::Node;

/// What there is of the containers of a node, by kind. A kind of which nothing is there is absent.
pub(crate) fn of(node: &Node) -> BTreeMap<&'static str, Vec<String>> {
    let marks = node.marks();
    let sockets = node.sockets.lock().unwrap();
    let sockets = sockets.iter().filter(|path| path.exists());
    let bundles = node.dir.path().join("state/io.containerd.runtime.v2.task");
    let name = marks[1];
    let mut all = BTreeMap::from([
        ("bundles", below(&bundles)),
        ("cgroups", cgroups_of_containers(name)),
        ("mounts", mounts(&marks)),
        ("processes", processes(node)),
        ("sockets", sockets.map(|path| text(path)).collect()),
    ]);
    all.retain(|_, found| !found.is_empty());
    all
}

/// Mount points whose line in mountinfo has one of the marks.
pub(crate) fn mounts(marks: &[&str]) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter(|line| marks.iter().any(|mark| line.contains(mark)))
        .filter_map(|line| line.split(' ').nth(4))
        .map(ToOwned::to_owned)
        .collect()
}

/// Folders of cgroups, each before what is in it.
pub(crate) fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in hierarchies() {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(name) {
                collect(&entry.path(), &mut found);
            }
        }
    }
    found
}

/// Where the hierarchies of version 1 and 2 are mounted.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = table.lines().filter(|line| line.contains(" - cgroup"));
    lines
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// Processes whose arguments or cgroup have one of the marks, without this one.
pub(crate) fn pids(marks: &[&str]) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != own && is_marked(pid, marks))
        .collect()
}

/// Processes of shims among them: what is named so.
pub(crate) fn shims(marks: &[&str]) -> Vec<i32> {
    let is_shim = |pid: &i32| command(*pid).contains("containerd-shim");
    pids(marks).into_iter().filter(is_shim).collect()
}

/// The arguments of a process, with spaces between.
pub(crate) fn command(pid: i32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).replace('\0', " ")
}

fn is_marked(pid: i32, marks: &[&str]) -> bool {
    let command = command(pid);
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    // One without arguments has ended, and waits for its parent's notice.
    let has = |mark: &&str| command.contains(*mark) || groups.contains(*mark);
    !command.is_empty() && marks.iter().any(has)
}

fn processes(node: &Node) -> Vec<String> {
    let containerd = i32::try_from(node.pid()).unwrap();
    let pids = pids(&node.marks()).into_iter();
    pids.filter(|&pid| pid != containerd)
        .map(|pid| format!("{pid} {}", command(pid)))
        .collect()
}

/// The namespace's own folder may stay: runc makes it and never removes it.
fn cgroups_of_containers(name: &str) -> Vec<String> {
    let is_own = |dir: &PathBuf| {
        dir.file_name()
            .is_some_and(|last| last.to_string_lossy().contains(name))
    };
    cgroups(name)
        .iter()
        .filter(|dir| !is_own(dir))
        .map(|dir| text(dir))
        .collect()
}

/// What is in the folders of a folder.
fn below(dir: &Path) -> Vec<String> {
    let dirs = fs::read_dir(dir).into_iter().flatten().flatten();
    dirs.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten().flatten())
        .map(|entry| text(&entry.path()))
        .collect()
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    found.push(dir.to_owned());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
