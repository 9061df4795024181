//! A container's cgroup on this machine, whichever versions it has.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use containerd_shim::protos::{cgroups::metrics::Metrics, protobuf::Message};
use expect_test::{Expect, expect};
use oci_spec::runtime::LinuxResources;
use shim::cgroup::{Cgroup, CgroupConfig, CgroupError};

use crate::{is_able, until};

/// A cgroup that no other test uses. Dropping it removes it, and the folders above it.
struct Fixture {
    config: CgroupConfig,
    cgroup: Cgroup,
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

fn config(name: &str, json: &str) -> CgroupConfig {
    CgroupConfig {
        path: Some(format!("/opr-kernel-{name}-{}/x", std::process::id())),
        id: name.to_owned(),
        namespace: "test".to_owned(),
        systemd: false,
        resources: Some(resources(json)),
    }
}

/// The mount points of all hierarchies.
fn points() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut points: Vec<PathBuf> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields[2].starts_with("cgroup"))
        .map(|fields| fields[1].into())
        .collect();
    points.sort();
    points
}

/// The folders of a path that there are in all hierarchies.
fn folders(path: &str) -> Vec<PathBuf> {
    let path = path.trim_start_matches('/');
    points()
        .iter()
        .map(|point| point.join(path))
        .filter(|path| path.exists())
        .collect()
}

fn create(config: &CgroupConfig) -> Result<Cgroup, CgroupError> {
    let mut begun = Cgroup::begin(config)?;
    begun.complete()?;
    Ok(begun.keep())
}

fn has_v1(controller: &str) -> bool {
    let path = PathBuf::from("/sys/fs/cgroup").join(controller);
    path.join("tasks").exists()
}

fn has_unified(controller: &str) -> bool {
    fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers")
        .is_ok_and(|text| text.split_whitespace().any(|name| name == controller))
}

impl Fixture {
    #[track_caller]
    fn new(name: &str, json: &str) -> Self {
        let config = config(name, json);
        let cgroup = create(&config).unwrap();
        Self { config, cgroup }
    }

    fn path(&self) -> &str {
        self.config.path.as_deref().unwrap()
    }

    /// What a file of one controller says.
    #[track_caller]
    fn read(&self, controller: &str, file: &str) -> String {
        let path = format!("/sys/fs/cgroup/{controller}{}/{file}", self.path());
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    fn start(&self, command: &str) -> Child {
        start(&self.cgroup, command)
    }

    fn run(&self, command: &str) -> ExitStatus {
        self.start(command).wait().unwrap()
    }
}

/// Starts a shell command by a cgroup's entry. Its input is open as long as the child is not waited for.
fn start(cgroup: &Cgroup, command: &str) -> Child {
    let entry = cgroup.entry().unwrap();
    let path = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let tasks = entry.tasks.iter().map(path);
    let unified = cgroup.birthplace().unwrap();
    let unified = unified
        .iter()
        .map(|fd| format!("{}/cgroup.procs", path(fd)));
    let script = format!("for f do echo 0 >\"$f\" || exit 99; done; echo in; {command}");
    let mut child = Command::new("sh")
        .args(["-c", &script, "sh"])
        .args(tasks.chain(unified))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = [0; 3];
    io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
    child
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let killed = self.cgroup.kill().and_then(|()| self.cgroup.delete());
        let above = self.path().trim_end_matches("/x").to_owned();
        for path in folders(&above) {
            let _ = fs::remove_dir(path);
        }
        if !std::thread::panicking() {
            killed.unwrap();
            assert_eq!(folders(&above), Vec::<PathBuf>::new());
        }
    }
}

#[test]
fn is_in_each_hierarchy_and_leaves_none() {
    if !is_able("cgroups", !points().is_empty()) {
        return;
    }
    let fixture = Fixture::new("everywhere", "{}");
    assert_eq!(folders(fixture.path()).len(), points().len());
    let mut child = fixture.start("read _; :");
    let own = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let outside: Vec<_> = own
        .lines()
        .filter(|line| !line.ends_with(fixture.path()))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    assert_eq!(fixture.cgroup.pids().unwrap(), [child.id()]);
    child.kill().unwrap();
    child.wait().unwrap();
    fixture.cgroup.delete().unwrap();
    assert_eq!(folders(fixture.path()), Vec::<PathBuf>::new());
    fixture.cgroup.delete().unwrap();
}

/// What files say, a line each.
fn read_all(fixture: &Fixture, files: &str) -> String {
    let line = |file: &str| {
        let controller = file.split('.').next().unwrap();
        let text = fixture.read(controller, file).replace('\n', ", ");
        format!("{file} {text}\n")
    };
    files.split_whitespace().map(line).collect()
}

#[test]
fn limits_read_back() {
    if !is_able("cgroup version 1", has_v1("memory") && has_v1("cpu")) {
        return;
    }
    let fixture = Fixture::new(
        "limits",
        r#"{"memory":{"limit":67108864,"reservation":33554432,"swap":67108864,"swappiness":10,
                      "disableOOMKiller":true,"useHierarchy":true,"kernelTCP":1048576},
            "cpu":{"shares":512,"quota":50000,"period":100000,"burst":5000,"cpus":"0","mems":"0"},
            "pids":{"limit":20}}"#,
    );
    let files = "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes \
                 memory.swappiness memory.oom_control memory.kmem.tcp.limit_in_bytes cpu.shares \
                 cpu.cfs_quota_us cpu.cfs_period_us cpu.cfs_burst_us cpuset.cpus cpuset.mems pids.max";
    expect![[r#"
        memory.limit_in_bytes 67108864
        memory.memsw.limit_in_bytes 67108864
        memory.soft_limit_in_bytes 33554432
        memory.swappiness 10
        memory.oom_control oom_kill_disable 1, under_oom 0, oom_kill 0
        memory.kmem.tcp.limit_in_bytes 1048576
        cpu.shares 512
        cpu.cfs_quota_us 50000
        cpu.cfs_period_us 100000
        cpu.cfs_burst_us 5000
        cpuset.cpus 0
        cpuset.mems 0
        pids.max 20
    "#]]
    .assert_eq(&read_all(&fixture, files));
}

#[test]
fn limits_change_up_and_down() {
    if !is_able("cgroup version 1", has_v1("memory") && has_v1("cpu")) {
        return;
    }
    let fixture = Fixture::new(
        "changes",
        r#"{"memory":{"limit":67108864,"swap":67108864},
            "cpu":{"quota":50000,"period":100000,"burst":5000},"pids":{"limit":20}}"#,
    );
    let files = "memory.limit_in_bytes memory.memsw.limit_in_bytes cpu.shares cpu.cfs_quota_us \
                 cpu.cfs_period_us cpu.cfs_burst_us cpu.idle pids.max";
    let mut text = String::new();
    for changed in [
        r#"{"memory":{"limit":134217728,"swap":268435456}}"#,
        r#"{"memory":{"limit":33554432,"swap":33554432}}"#,
        r#"{"memory":{"limit":-1},"pids":{"limit":-1}}"#,
        r#"{"cpu":{"quota":1000,"burst":100,"period":2000}}"#,
        r#"{"cpu":{"quota":200000,"burst":0,"period":1000000}}"#,
        r#"{"cpu":{"quota":-1,"idle":1}}"#,
        r#"{"cpu":{"idle":0,"shares":100}}"#,
    ] {
        fixture.cgroup.update(&resources(changed)).unwrap();
        let all = read_all(&fixture, files);
        let values: Vec<&str> = all
            .lines()
            .map(|line| line.split_once(' ').unwrap().1)
            .collect();
        text.push_str(&values.join(" "));
        text.push('\n');
    }
    expect![[r#"
        134217728 268435456 1024 50000 100000 5000 0 20
        33554432 33554432 1024 50000 100000 5000 0 20
        9223372036854771712 9223372036854771712 1024 50000 100000 5000 0 max
        9223372036854771712 9223372036854771712 1024 1000 2000 100 0 max
        9223372036854771712 9223372036854771712 1024 200000 1000000 0 0 max
        9223372036854771712 9223372036854771712 3 -1 1000000 0 1 max
        9223372036854771712 9223372036854771712 100 -1 1000000 0 0 max
    "#]]
    .assert_eq(&text);
}

#[test]
fn a_controller_of_version_2_serves_beside_version_1() {
    let is_hybrid = has_v1("memory") && has_unified("hugetlb");
    if !is_able("a hybrid machine with hugetlb on version 2", is_hybrid) {
        return;
    }
    let fixture = Fixture::new(
        "hugetlb",
        r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}],"unified":{"cgroup.max.depth":"2"}}"#,
    );
    assert_eq!(fixture.read("unified", "hugetlb.2MB.max"), "4194304");
    assert_eq!(fixture.read("unified", "cgroup.max.depth"), "2");
    assert!(fixture.run(":").success());
}

/// What `create` says to resources that this machine cannot give; nothing is left of it.
#[track_caller]
fn check_refused(name: &str, json: &str, expected: Expect) {
    let config = config(name, json);
    let error = create(&config).unwrap_err();
    let path = config.path.unwrap();
    let text = error.to_string().replace(path.as_str(), "/…");
    expected.assert_eq(&text);
    let above = path.trim_end_matches("/x");
    assert_eq!(folders(above), Vec::<PathBuf>::new());
}

#[test]
fn what_cannot_be_is_named_and_leaves_nothing() {
    if !is_able("cgroup version 1", has_v1("memory")) {
        return;
    }
    check_refused(
        "cpus",
        r#"{"cpu":{"cpus":"4000"}}"#,
        expect!["linux.resources.cpu.cpus: cannot write /sys/fs/cgroup/cpuset/…/cpuset.cpus"],
    );
    check_refused(
        "quota",
        r#"{"cpu":{"quota":1}}"#,
        expect!["linux.resources.cpu.quota: cannot write /sys/fs/cgroup/cpu/…/cpu.cfs_quota_us"],
    );
    check_refused(
        "kernel",
        r#"{"memory":{"kernel":1048576}}"#,
        expect![
            "linux.resources.memory.kernel needs a kernel that takes memory.kmem.limit_in_bytes, which this machine does not have"
        ],
    );
    check_refused(
        "class",
        r#"{"network":{"classID":5}}"#,
        expect![
            "linux.resources.network.classID needs the controller net_cls, which this machine does not have"
        ],
    );
    check_refused(
        "rdma",
        r#"{"rdma":{"mlx5":{"hcaHandles":3}}}"#,
        expect!["linux.resources.rdma needs the controller rdma, which this machine does not have"],
    );
    check_refused(
        "weight",
        r#"{"blockIO":{"leafWeight":10}}"#,
        expect![
            "linux.resources.blockIO.leafWeight needs the file blkio.leaf_weight in /sys/fs/cgroup/blkio/…, which this machine does not have"
        ],
    );
    check_refused(
        "unified",
        r#"{"unified":{"memory.high":"1"}}"#,
        expect![[
            r#"linux.resources.unified["memory.high"] needs its controller on cgroup version 2, which this machine does not have"#
        ]],
    );
    check_refused(
        "page",
        r#"{"hugepageLimits":[{"pageSize":"3MB","limit":0}]}"#,
        expect![
            "linux.resources.hugepageLimits needs the file hugetlb.3MB.max in /sys/fs/cgroup/unified/…, which this machine does not have"
        ],
    );
    let hole = r#"{"devices":[{"allow":true,"type":"c","major":1,"access":"r"},
                              {"allow":false,"type":"c","major":1,"minor":3,"access":"r"}]}"#;
    check_refused("hole", hole, expect!["linux.resources.devices"]);
}

#[test]
fn a_cgroup_in_use_is_refused_and_an_empty_one_is_not() {
    if !is_able("cgroups", !points().is_empty()) {
        return;
    }
    let fixture = Fixture::new("busy", "{}");
    let mut child = fixture.start("read _; :");
    let error = create(&fixture.config).unwrap_err();
    assert!(matches!(error, CgroupError::Busy { .. }), "{error}");
    assert_eq!(fixture.cgroup.pids().unwrap(), [child.id()]);
    fixture.cgroup.kill().unwrap();
    child.wait().unwrap();
    until("the end", || fixture.cgroup.pids().unwrap().is_empty());
    create(&fixture.config).unwrap();

    fixture.cgroup.freeze().unwrap();
    let error = create(&fixture.config).unwrap_err();
    assert!(matches!(error, CgroupError::Busy { .. }), "{error}");
    fixture.cgroup.thaw().unwrap();
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    if !is_able("cgroups", !points().is_empty()) {
        return;
    }
    for (path, systemd) in [
        ("/a/../../b", false),
        ("..", false),
        ("/a//b", false),
        ("/", false),
        ("/a\0b", false),
        ("slice:prefix:name", false),
        ("/opr/x", true),
    ] {
        let config = CgroupConfig {
            path: Some(path.to_owned()),
            systemd,
            ..CgroupConfig::default()
        };
        for error in [
            create(&config).unwrap_err(),
            Cgroup::open(&config).unwrap_err(),
        ] {
            assert!(matches!(error, CgroupError::Path { .. }), "{path}: {error}");
        }
    }
}

#[test]
fn without_systemd_its_driver_is_refused() {
    let has_none = !PathBuf::from("/run/systemd/system").is_dir();
    if !is_able("a machine without systemd", has_none) {
        return;
    }
    let config = CgroupConfig {
        path: Some("system.slice:opr:x".to_owned()),
        systemd: true,
        ..CgroupConfig::default()
    };
    let error = create(&config).unwrap_err().to_string();
    assert_eq!(
        error,
        "systemd: opr-x.scope: it does not run on this machine"
    );
    Cgroup::open(&config).unwrap().delete().unwrap();
}

#[test]
fn an_empty_path_is_below_this_process() {
    if !is_able("cgroups", !points().is_empty()) {
        return;
    }
    let config = CgroupConfig {
        id: format!("opr-empty-{}", std::process::id()),
        namespace: format!("opr-namespace-{}", std::process::id()),
        ..CgroupConfig::default()
    };
    let cgroup = create(&config).unwrap();
    let mut child = start(&cgroup, "read _");
    let read = |pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let (own, text) = (read(std::process::id()), read(child.id()));
    cgroup.kill().unwrap();
    child.wait().unwrap();
    cgroup.delete().unwrap();
    for (own, line) in own.lines().zip(text.lines()) {
        let above = format!("{}/{}", own.trim_end_matches('/'), config.namespace);
        assert_eq!(line, format!("{above}/{}", config.id));
        for above in folders(above.splitn(3, ':').nth(2).unwrap()) {
            fs::remove_dir(above).unwrap();
        }
    }
}

#[test]
fn freezes_and_thaws() {
    if !is_able("cgroups", !points().is_empty()) {
        return;
    }
    let fixture = Fixture::new("freeze", "{}");
    let mut child = fixture.start("while :; do :; done");
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.split(' ').nth(13).unwrap().parse::<u64>().unwrap()
    };
    until("running", || used() > 2);
    fixture.cgroup.freeze().unwrap();
    fixture.cgroup.freeze().unwrap();
    let before = used();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(used(), before, "it ran while frozen");
    fixture.cgroup.thaw().unwrap();
    until("running on", || used() > before + 2);
    // A frozen process is killed too.
    fixture.cgroup.freeze().unwrap();
    fixture.cgroup.kill().unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn kills_and_removes_cgroups_that_the_container_made() {
    if !is_able("cgroup version 1", has_v1("freezer")) {
        return;
    }
    let fixture = Fixture::new("below", "{}");
    let below = folders(fixture.path())
        .into_iter()
        .map(|path| path.join("a/b/c"));
    let below: Vec<PathBuf> = below.collect();
    for path in below
        .iter()
        .filter(|path| !path.starts_with("/sys/fs/cgroup/cpuset"))
    {
        fs::create_dir_all(path).unwrap();
    }
    // It puts itself below in all hierarchies but the one that a cpuset guards, and freezes itself there.
    let into: Vec<String> = (below.iter())
        .filter(|path| path.exists())
        .map(|path| format!("echo 0 >{}/cgroup.procs", path.display()))
        .collect();
    let freezer = format!("/sys/fs/cgroup/freezer{}/a/b/freezer.state", fixture.path());
    let mut child = fixture.start(&format!(
        "{}; sleep 60 & echo FROZEN >{freezer}",
        into.join("; ")
    ));
    until("being frozen", || {
        fs::read_to_string(&freezer).unwrap().trim() == "FROZEN"
    });
    assert_eq!(fixture.cgroup.pids().unwrap().len(), 2);
    fixture.cgroup.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    until("the end", || fixture.cgroup.pids().unwrap().is_empty());
    fixture.cgroup.delete().unwrap();
    assert_eq!(folders(fixture.path()), Vec::<PathBuf>::new());
}

#[test]
fn kills_what_forks_all_the_time() {
    if !is_able("cgroups", !points().is_empty()) {
        return;
    }
    let fixture = Fixture::new("forks", r#"{"pids":{"limit":40}}"#);
    // None of them ends where one more is refused.
    let mut child = fixture.start("exec perl -e 'fork while 1'");
    until("many processes", || {
        fixture.cgroup.pids().unwrap().len() > 20
    });
    fixture.cgroup.kill().unwrap();
    child.wait().unwrap();
    until("the end", || fixture.cgroup.pids().unwrap().is_empty());
}

#[test]
fn rules_devices_as_a_process_sees_it() {
    if !is_able("cgroup version 1", has_v1("devices")) {
        return;
    }
    let closed = r#"{"devices":[{"allow":false,"access":"rwm"}]}"#;
    let fixture = Fixture::new("devices", closed);
    let is_ok = |command: &str| fixture.run(command).success();
    assert!(is_ok("head -c1 /dev/zero >/dev/null && : </dev/urandom"));
    assert!(!is_ok("( : </dev/kmsg ) 2>/dev/null"));
    fixture
        .cgroup
        .update(&resources(
            r#"{"devices":[{"allow":false,"access":"rwm"},
                           {"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#,
        ))
        .unwrap();
    assert!(is_ok(": </dev/kmsg"));
    assert!(!is_ok("( : <>/dev/kmsg ) 2>/dev/null"));
    // No rules: they stay.
    fixture
        .cgroup
        .update(&resources(r#"{"pids":{"limit":50}}"#))
        .unwrap();
    assert!(!is_ok("( : <>/dev/kmsg ) 2>/dev/null"));
    expect![[r#"
        b *:* m
        c *:* m
        c 1:3 rwm
        c 1:5 rwm
        c 1:7 rwm
        c 1:8 rwm
        c 1:9 rwm
        c 5:0 rwm
        c 5:2 rwm
        c 136:* rwm
        c 1:11 r"#]]
    .assert_eq(&fixture.read("devices", "devices.list"));
    fixture
        .cgroup
        .update(&resources(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#))
        .unwrap();
    assert!(is_ok(": <>/dev/kmsg"));
}

#[tokio::test]
async fn tells_of_a_process_that_ate_all_memory() {
    if !is_able("cgroup version 1", has_v1("memory")) {
        return;
    }
    let fixture = Fixture::new("oom", r#"{"memory":{"limit":16777216}}"#);
    let mut watch = fixture.cgroup.oom().unwrap();
    let mut other = fixture.cgroup.oom().unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(50), watch.next());
    assert!(waiting.await.is_err(), "nothing happened yet");
    let killed = fixture.run("exec tail /dev/zero");
    assert!(!killed.success(), "{killed}");
    let next = tokio::time::timeout(Duration::from_secs(5), watch.next());
    assert_eq!(next.await.unwrap(), Some(()));
    fixture.cgroup.delete().unwrap();
    let next = tokio::time::timeout(Duration::from_secs(5), watch.next());
    assert_eq!(next.await.unwrap(), None);
    // One who looks only afterwards learns both.
    assert_eq!(other.next().await, Some(()));
    let next = tokio::time::timeout(Duration::from_secs(5), other.next());
    assert_eq!(next.await.unwrap(), None);
}

#[test]
fn tells_what_is_used() {
    if !is_able("cgroup version 1", has_v1("memory")) {
        return;
    }
    let json = r#"{"memory":{"limit":67108864},"pids":{"limit":30}}"#;
    let fixture = Fixture::new("stats", json);
    let mut child = fixture.start("i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo; read _");
    io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let any = fixture.cgroup.stats().unwrap();
    assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
    let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
    assert_eq!((metrics.pids.current, metrics.pids.limit), (1, 30));
    assert_eq!(metrics.memory.usage.limit, 67_108_864);
    assert!(metrics.memory.usage.usage > 0, "{metrics}");
    assert!(metrics.cpu.usage.total > 1_000_000, "{metrics}");
    assert!(!metrics.cpu.usage.per_cpu.is_empty());
    let _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn thousands_of_lives_leave_nothing() {
    if !is_able("cgroups", !points().is_empty()) {
        return;
    }
    let keeper = Fixture::new("lives", "{}");
    let json = r#"{"memory":{"limit":67108864},"cpu":{"shares":512,"quota":50000,"period":100000},
                   "pids":{"limit":20},"devices":[{"allow":false,"access":"rwm"}]}"#;
    let n_descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = n_descriptors();
    let (mut creating, mut entering, mut deleting) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..1000 {
        let mut config = config("lives", json);
        config.path = Some(format!("{}/{index}", keeper.path().trim_end_matches("/x")));
        let begin = Instant::now();
        let cgroup = create(&config).unwrap();
        let created = Instant::now();
        drop(cgroup.entry().unwrap());
        let entered = Instant::now();
        cgroup.delete().unwrap();
        creating.push(created - begin);
        entering.push(entered - created);
        deleting.push(entered.elapsed());
    }
    // Other tests of this process have a few of theirs.
    assert!(n_descriptors() < before + 100);
    let above = keeper.path().trim_end_matches("/x");
    for path in folders(above) {
        let below = fs::read_dir(&path).unwrap().flatten();
        assert_eq!(
            below.filter(|entry| entry.path().is_dir()).count(),
            1,
            "{path:?}"
        );
    }
    for (what, mut times) in [
        ("create", creating),
        ("entry", entering),
        ("delete", deleting),
    ] {
        times.sort();
        println!(
            "{what}: least {:?}, p50 {:?}, p99 {:?}",
            times[0], times[500], times[990]
        );
    }
}

#[test]
fn containers_that_start_at_once_share_the_folders_above() {
    if !is_able("cgroups", !points().is_empty()) {
        return;
    }
    for round in 0..20 {
        let above = format!("/opr-kernel-together-{}-{round}", std::process::id());
        std::thread::scope(|scope| {
            for index in 0..4 {
                let above = &above;
                scope.spawn(move || {
                    let config = CgroupConfig {
                        path: Some(format!("{above}/a/{index}")),
                        ..CgroupConfig::default()
                    };
                    let cgroup = create(&config).unwrap();
                    assert!(start(&cgroup, ":").wait().unwrap().success());
                    cgroup.delete().unwrap();
                });
            }
        });
        for path in folders(&format!("{above}/a"))
            .into_iter()
            .chain(folders(&above))
        {
            fs::remove_dir(path).unwrap();
        }
    }
}

/// Run as a user without rights in a user namespace of its own, by the test below.
#[test]
fn inside_a_user_namespace() {
    if std::env::var_os("OPR_TEST_INSIDE").is_none() {
        return;
    }
    let config = CgroupConfig {
        id: "x".to_owned(),
        namespace: "opr-inside".to_owned(),
        ..CgroupConfig::default()
    };
    // Nothing may be made, and nothing is asked for: as in runc that is fine.
    let cgroup = create(&config).unwrap();
    let entry = cgroup.entry().unwrap();
    assert!(
        entry.tasks.is_empty() && cgroup.birthplace().unwrap().is_none(),
        "{entry:?}"
    );
    assert!(cgroup.pids().unwrap().is_empty());
    cgroup.kill().unwrap();
    cgroup.delete().unwrap();
    // A limit, or a path that somebody chose, is not left out.
    let limited = CgroupConfig {
        resources: Some(resources(r#"{"pids":{"limit":5}}"#)),
        ..config.clone()
    };
    let error = create(&limited).unwrap_err();
    assert!(
        error.to_string().starts_with("linux.resources.pids.limit"),
        "{error}"
    );
    let chosen = CgroupConfig {
        path: Some("/opr-inside/x".to_owned()),
        ..config
    };
    let error = create(&chosen).unwrap_err();
    assert!(matches!(error, CgroupError::Create { .. }), "{error}");
}

#[test]
fn a_user_without_rights_gets_containers_without_limits() {
    if !is_able("cgroups", !points().is_empty()) {
        return;
    }
    let folder = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let program = folder.path().join("kernel");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["unshare", "--user", "--map-root-user"])
        .arg(&program)
        .args(["--exact", "cgroup::inside_a_user_namespace", "--nocapture"])
        .env("OPR_TEST_INSIDE", "1")
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "{text}");
}
