//! The library against the real things: containerd, a registry, the kernel.
//!
//! Each test has a containerd of its own under a temporary directory. What cannot run here is
//! counted and skipped; with `REQUIRE_ALL=1` a skip fails.

#![expect(clippy::unwrap_used, reason = "a fixture that fails fails its test")]

mod build;
mod containerd;
mod image;
mod import;
mod mount;
mod proxy;
mod pull;
mod registry;
mod store;

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Whether this machine has what a test needs: root, and programs by name.
fn can_run(programs: &[&str]) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let absent = programs.iter().find(|program| !is_program(program));
    let missing = match (is_root, absent) {
        (true, None) => return true,
        (false, _) => "root",
        (_, Some(program)) => program,
    };
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    assert!(
        std::env::var_os("REQUIRE_ALL").is_none(),
        "this test needs {missing}"
    );
    eprintln!(
        "skipped {}: needs {missing}",
        SKIPPED.fetch_add(1, Ordering::Relaxed) + 1
    );
    false
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Runs a program to its end and answers what it printed.
#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let (out, err) = (output.stdout, output.stderr);
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&err)
    );
    String::from_utf8_lossy(&out).into_owned()
}

/// The mount points at or below `path`, as the kernel lists them.
fn mounts_below(path: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| Path::new(point).starts_with(path))
        .map(str::to_owned)
        .collect()
}
