//! Version 2 alone, on the unified tree of this machine: what a hybrid machine does by version 1 is done here by
//! version 2's files. Needs root.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::*;

/// A cgroup of version 2 that no other test uses. Dropping it removes it.
pub(super) struct Unified {
    pub(super) path: PathBuf,
    temporary: tempfile::TempDir,
}

impl Unified {
    /// Nothing where this machine does not let it be made, which is counted; `REQUIRE_ALL=1` makes that a failure.
    pub(super) fn new(name: &str) -> Option<Self> {
        static SKIPPED: AtomicUsize = AtomicUsize::new(0);
        let unified = hierarchy::get()
            .ok()
            .and_then(|found| found.unified.as_ref());
        let path = unified.map(|unified| {
            let name = format!("opr-unit-{name}-{}", std::process::id());
            unified.point.join(&unified.own).join(name)
        });
        let Some(path) = path.filter(|path| fs::create_dir(path).is_ok()) else {
            let why = "this test needs root and a unified tree";
            assert!(std::env::var_os("REQUIRE_ALL").is_none(), "{why}");
            eprintln!(
                "skipped {}: {why}",
                SKIPPED.fetch_add(1, Ordering::Relaxed) + 1
            );
            return None;
        };
        let temporary = tempfile::tempdir().unwrap();
        Some(Self { path, temporary })
    }

    /// The cgroup as if there were no version 1.
    fn cgroup(&self) -> Cgroup {
        Cgroup {
            v1: Vec::new(),
            unified: Some(self.path.clone()),
            scope: None,
            turn: Mutex::new(()),
        }
    }

    /// Starts a shell command in a cgroup.
    fn start_in(&self, path: &Path, command: &str) -> Child {
        Command::new("sh")
            .args(["-c", &format!("echo 0 >\"$0\" && {command}")])
            .arg(path.join("cgroup.procs"))
            .env("TMP", self.temporary.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Runs a shell command in this cgroup.
    pub(super) fn run(&self, command: &str) -> ExitStatus {
        self.start_in(&self.path, command).wait().unwrap()
    }
}

impl Drop for Unified {
    fn drop(&mut self) {
        let cgroup = self.cgroup();
        cgroup.kill().unwrap();
        cgroup.delete().unwrap();
        assert!(!self.path.exists());
    }
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn freezes_thaws_and_kills_with_all_below() {
    let Some(unified) = Unified::new("freeze") else {
        return;
    };
    let cgroup = unified.cgroup();
    let below = unified.path.join("a/b");
    fs::create_dir_all(&below).unwrap();
    let mut children = [
        unified.start_in(&unified.path, "while :; do :; done"),
        unified.start_in(&below, "while :; do :; done"),
    ];
    until("both processes", || cgroup.pids().unwrap().len() == 2);

    cgroup.freeze().unwrap();
    let used = || {
        let text = fs::read_to_string(unified.path.join("cpu.stat")).unwrap();
        let line = text.lines().next().unwrap();
        line.trim_start_matches("usage_usec ")
            .parse::<u64>()
            .unwrap()
    };
    let before = used();
    thread::sleep(Duration::from_millis(50));
    assert!(used() < before + 5000, "it ran while frozen");
    cgroup.thaw().unwrap();
    until("running on", || used() > before + 20_000);

    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    for child in &mut children {
        assert!(!child.wait().unwrap().success());
    }
    assert!(cgroup.pids().unwrap().is_empty());
    cgroup.delete().unwrap();
    assert!(!unified.path.exists());
    cgroup.delete().unwrap();
    cgroup.kill().unwrap();
    assert!(cgroup.pids().unwrap().is_empty());
    assert!(cgroup.freeze().unwrap_err().is_missing());
}

#[test]
fn kills_by_numbers_where_the_kernel_has_no_better_way() {
    let Some(unified) = Unified::new("rounds") else {
        return;
    };
    let cgroup = unified.cgroup();
    let mut child = unified.start_in(&unified.path, "(sleep 60 & sleep 60 & wait)");
    until("the processes", || cgroup.pids().unwrap().len() >= 3);
    control::kill_rounds(&cgroup).unwrap();
    assert!(!child.wait().unwrap().success());
    until("their end", || cgroup.pids().unwrap().is_empty());
}

#[test]
fn tells_what_version_2_counts() {
    let Some(unified) = Unified::new("stats") else {
        return;
    };
    unified.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    let any = unified.cgroup().stats().unwrap();
    assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
    use containerd_shim::protos::{cgroups_v2::metrics::Metrics, protobuf::Message};
    let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
    assert!(metrics.cpu.usage_usec > 0, "{metrics}");
}

#[test]
fn a_cgroup_with_threads_is_refused() {
    let Some(unified) = Unified::new("threads") else {
        return;
    };
    let path = unified.path.join("x");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("cgroup.type"), "threaded").unwrap();
    let point = &hierarchy::get().unwrap().unified.as_ref().unwrap().point;
    let config = CgroupConfig {
        path: Some(format!("/{}", path.strip_prefix(point).unwrap().display())),
        ..CgroupConfig::default()
    };
    let error = Cgroup::begin(&config).unwrap_err();
    assert!(matches!(error, CgroupError::Create { .. }), "{error}");
    // Its processes are the ones of the cgroup above.
    let mut child = unified.start_in(&unified.path, "read _");
    assert!(Cgroup::open(&config).unwrap().pids().unwrap().is_empty());
    assert!(unified.cgroup().pids().is_ok());
    child.wait().unwrap();
    Cgroup::open(&config).unwrap().delete().unwrap();
}

#[test]
fn an_idle_process_ends_when_it_is_dropped() {
    let idle = sys::Idle::start().unwrap();
    let path = format!("/proc/{}/fd", idle.pid());
    until("one descriptor", || {
        fs::read_dir(&path).is_ok_and(|files| files.count() == 1)
    });
    drop(idle);
    assert!(!Path::new(&path).exists());
}
