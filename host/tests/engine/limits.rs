//! Limits: set at birth, changed while running, and what happens at them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use opr_host::{
    adapter::{Adapter, EngineError, Event},
    config::{Config, Limits},
    id::{ClassName, SandboxId},
};
use tokio::sync::broadcast;

use crate::node::{Node, SERVER, fetch, is_able, sandbox};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_running_sandbox_change_at_once() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let server = sandbox("server", "function", &SERVER);
    node.adapter.create(server.clone()).await.unwrap();
    let check = async |cpus: f64, mib: u64, expected: &str| {
        let limits = Limits {
            cpus,
            memory_bytes: mib * MIB,
        };
        node.adapter.update(&server.id, limits).await.unwrap();
        assert_eq!(limits_of(&node.config, "function/server"), expected);
    };
    let born = limits_of(&node.config, "function/server");
    assert_eq!(born, "cpu 100000 memory 67108864");
    check(0.5, 32, "cpu 50000 memory 33554432").await;
    check(2.0, 256, "cpu 200000 memory 268435456").await;
    check(0.0, 0, "cpu none memory none").await;
    check(1.0, 64, "cpu 100000 memory 67108864").await;
    fetch(&node, &server.id).await;

    node.adapter.delete(&server.id).await.unwrap();
    let error = node.adapter.update(&server.id, Limits::default()).await;
    assert!(
        matches!(error, Err(EngineError::Refused { .. })),
        "{error:?}"
    );
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_class_are_set_and_lifted_while_it_has_sandboxes() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let server = sandbox("server", "function", &SERVER);
    node.adapter.create(server.clone()).await.unwrap();
    let mut disks = fs::read_dir("/sys/block").unwrap().flatten();
    let disk = disks.find(|disk| disk.path().join("device").exists());
    let disk = fs::read_to_string(disk.unwrap().path().join("dev")).unwrap();
    let disk = disk.trim();
    let check = |lines: &str, expected: &[&str]| {
        let mut classes = (*node.adapter.classes().all()).clone();
        let name = ClassName::try_new("function").unwrap();
        classes.insert(name.clone(), toml::from_str(lines).unwrap());
        node.adapter.set_classes(classes).unwrap();
        let all = io_limits_of(&node.config, "function", disk);
        assert_eq!(all, expected, "{lines}");
        let (kernel, n_sandboxes) = node.adapter.class_values(&name);
        assert_eq!(n_sandboxes, 1);
        kernel
    };
    check(
        &format!("'io.max' = ['{disk} rbps=1048576 wiops=70']"),
        &["1048576", "70"],
    );
    check(&format!("'io.max' = ['{disk} wiops=50']"), &["50"]);
    check("", &[]);
    // Each bounds the other where the kernel counts memory with swap.
    for mib in [512, 64, 256] {
        let kernel = check(&format!("'memory.max' = {mib}\n'memory.swap.max' = 0"), &[]);
        let most = kernel
            .get("memory.max")
            .or(kernel.get("memory.limit_in_bytes"));
        assert_eq!(*most.unwrap(), (mib * MIB).to_string());
    }
    fetch(&node, &server.id).await;
    node.adapter.delete(&server.id).await.unwrap();
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn want_of_memory_is_told_before_the_exit_and_the_last_words_are_there() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let mut events = node.adapter.events();
    for round in 0..5 {
        let script = "seq 1 1000; echo last words; exec tail /dev/zero";
        let mut spec = sandbox(
            &format!("greedy-{round}"),
            "function",
            &["sh", "-c", script],
        );
        spec.limits.memory_bytes = 32 * MIB;
        let id = spec.id.clone();
        let made = node.adapter.create(spec).await.unwrap();
        let told = until_exit(&mut events, &id).await;
        let said = made.output.tail();
        assert!(said.ends_with(b"\n1000\nlast words\n"), "{}", said.len());
        let (last, first) = told.split_last().unwrap();
        assert_eq!(
            *last,
            Event::Exited {
                id: id.clone(),
                code: 137
            }
        );
        assert!(
            first.contains(&Event::OutOfMemory { id: id.clone() }),
            "{told:?}"
        );
        node.adapter.delete(&id).await.unwrap();
    }
    // Nothing of it is told of a sandbox that was just killed, and its exit is told by `delete`.
    let server = sandbox("server", "function", &SERVER);
    node.adapter.create(server.clone()).await.unwrap();
    node.adapter.delete(&server.id).await.unwrap();
    let exited = Event::Exited {
        id: server.id.clone(),
        code: 137,
    };
    assert_eq!(events.try_recv(), Ok(exited));
    assert!(events.try_recv().is_err());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_stays_within_its_processes_and_can_be_deleted() {
    if !is_able() {
        return;
    }
    const MAX: u64 = 64;
    let node = Node::start_with(|config| {
        let name = ClassName::try_new("function").unwrap();
        config.class.get_mut(&name).unwrap().pids_max = 64;
    })
    .await;
    // The first process stays: a shell that may not fork ends, and the sandbox would with it.
    let bomb = "bomb() { bomb | bomb & }; bomb 2>&- & exec sleep 100";
    let spec = sandbox("bomb", "function", &["sh", "-c", bomb]);
    let id = spec.id.clone();
    let neighbour = sandbox("neighbour", "function", &SERVER);
    node.adapter.create(neighbour.clone()).await.unwrap();
    node.adapter.create(spec).await.unwrap();
    let current = group_file(&node.config, "function/bomb", &["pids.current"]).unwrap();
    let events = group_file(&node.config, "function/bomb", &["pids.events"]).unwrap();
    // The kernel counts the forks that it refused, as `max N`.
    let refused = || fs::read_to_string(&events).unwrap().trim() != "max 0";
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) || !refused() {
        assert!(began.elapsed() < Duration::from_secs(30), "no fork refused");
        let n: u64 = fs::read_to_string(&current)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(n <= MAX, "{n} processes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fetch(&node, &neighbour.id).await;
    let began = Instant::now();
    node.adapter.delete(&id).await.unwrap();
    println!("deleted in {:?}", began.elapsed());
    assert!(!current.exists());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_leave_the_processors_to_executions() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    // All want all of one processor.
    let spin = ["busybox", "taskset", "1", "sh", "-c", "while :; do :; done"];
    let all = [
        sandbox("execution", "runtime", &spin),
        sandbox("build-1", "build", &spin),
        sandbox("build-2", "build", &spin),
    ];
    for spec in &all {
        node.adapter.create(spec.clone()).await.unwrap();
    }
    let used = || {
        all.each_ref()
            .map(|spec| node.adapter.cpu_time(&spec.id).unwrap())
    };
    let before = used();
    let since = || {
        let mut now = used()
            .into_iter()
            .zip(before)
            .map(|(now, before)| now - before);
        let execution = now.next().unwrap();
        (execution, now.sum::<Duration>())
    };
    let began = Instant::now();
    while since().0 + since().1 < Duration::from_secs(2) {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", since());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (execution, builds) = since();
    println!("of one processor: execution {execution:?}, builds {builds:?}");
    assert!(execution >= 2 * builds, "{execution:?} {builds:?}");
    for spec in &all {
        node.adapter.delete(&spec.id).await.unwrap();
    }
    node.end().await;
}

/// What is told of `id`, up to its exit.
async fn until_exit(events: &mut broadcast::Receiver<Event>, wanted: &SandboxId) -> Vec<Event> {
    let wait = async {
        let mut told = vec![];
        loop {
            let event = events.recv().await.unwrap();
            let is_exit = matches!(&event, Event::Exited { id, .. } if id == wanted);
            told.push(event);
            if is_exit {
                return told;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap()
}

/// The limits that the kernel has, of either cgroup version, as in `cpu 50000 memory none`.
fn limits_of(config: &Config, group: &str) -> String {
    let read = |names: &[&str]| {
        let file = group_file(config, group, names).unwrap();
        let text = fs::read_to_string(file).unwrap();
        let first = text.split_whitespace().next().unwrap().to_owned();
        // Version 1 says none by a number that no machine has.
        match first.parse::<i64>() {
            Ok(number) if (0..1 << 50).contains(&number) => first,
            _ => "none".to_owned(),
        }
    };
    let cpu = read(&["cpu.max", "cpu.cfs_quota_us"]);
    let memory = read(&["memory.max", "memory.limit_in_bytes"]);
    format!("cpu {cpu} memory {memory}")
}

/// Each limit of a disk that a cgroup of the node has.
fn io_limits_of(config: &Config, group: &str, disk: &str) -> Vec<String> {
    let files = [
        "io.max",
        "blkio.throttle.read_bps_device",
        "blkio.throttle.write_bps_device",
        "blkio.throttle.read_iops_device",
        "blkio.throttle.write_iops_device",
    ];
    let mut found = Vec::new();
    for file in files {
        let file = group_file(config, group, &[file]);
        let text = file.map(|file| fs::read_to_string(file).unwrap());
        let text = text.unwrap_or_default();
        let mut lines = text.lines().map(str::split_whitespace);
        let line = lines.find_map(|mut words| (words.next() == Some(disk)).then_some(words));
        let values = line.into_iter().flatten();
        let values = values.map(|word| word.split_once('=').map_or(word, |(_, value)| value));
        found.extend(values.filter(|value| *value != "max").map(str::to_owned));
    }
    found
}

/// The first of these files that a cgroup of the node has.
fn group_file(config: &Config, group: &str, names: &[&str]) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4))
        .map(|root| {
            Path::new(root)
                .join(&config.containerd.namespace)
                .join(group)
        });
    roots
        .flat_map(|root| {
            names
                .iter()
                .map(move |name| root.join(name))
                .collect::<Vec<_>>()
        })
        .find(|file| file.exists())
}
