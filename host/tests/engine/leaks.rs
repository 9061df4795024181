//! Many rounds of create and delete leave every counter where it was.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use opr_host::{
    adapter::{Adapter, CreateError},
    config::Config,
};

use crate::{
    node::{Node, exit_of, is_able, sandbox},
    traces::{shim_socket, traces},
};

/// How many sandboxes are made and deleted. Default 50.
const ROUNDS: &str = "OPR_TEST_ROUNDS";
const SETTLE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_create_and_delete_leave_every_counter_as_it_was() {
    if !is_able() {
        return;
    }
    let rounds: u32 = std::env::var(ROUNDS).map_or(50, |text| text.parse().unwrap());
    let node = Node::start().await;
    node.adapter.adopt().await.unwrap();
    for round in 0..6 {
        one(&node, round).await;
    }
    let before = settled(&node.config, |_| true).await;
    let (began, memory) = (Instant::now(), resident_kib());
    for round in 0..rounds {
        one(&node, round).await;
    }
    let took = began.elapsed();
    let after = settled(&node.config, |now| *now == before).await;
    println!(
        "{rounds} rounds took {took:?}, {:?} each",
        took / rounds.max(1)
    );
    println!(
        "resident memory of this process: {memory} KiB, then {} KiB",
        resident_kib()
    );
    println!("counters: {before:?}");
    assert_eq!(after, before);
    node.end().await;
}

/// Makes and deletes one sandbox: in turn one that runs, one that has ended, one that cannot start.
async fn one(node: &Node, round: u32) {
    let id = format!("round-{round}");
    let command: &[&str] = match round % 3 {
        0 => &["sleep", "1000"],
        1 => &["echo", "done"],
        _ => &["/no/such/program"],
    };
    let spec = sandbox(&id, "function", command);
    let mut events = node.adapter.events();
    match node.adapter.create(spec.clone()).await {
        Ok(_) => {
            if round % 3 == 1 {
                assert_eq!(exit_of(&mut events, &spec.id).await, 0);
            }
            node.adapter.delete(&spec.id).await.unwrap();
        }
        Err(CreateError::Command { .. }) if round % 3 == 2 => {}
        Err(error) => panic!("round {round}: {error:?}"),
    }
    shim_ends(node, &id).await;
}

/// The shim ends with its last sandbox, and a moment after containerd was told of that.
async fn shim_ends(node: &Node, id: &str) {
    let gone = async {
        while shim_socket(&node.config).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), gone).await;
    assert!(ended.is_ok(), "the shim stays after {id}");
}

type Counters = BTreeMap<&'static str, usize>;

/// The counters once they stand still with the pool full, and `is_right`; or as they are in the end.
async fn settled(config: &Config, is_right: impl Fn(&Counters) -> bool) -> Counters {
    let deadline = Instant::now() + SETTLE;
    let mut last = Counters::new();
    loop {
        let now = counters(config);
        let is_full = now["folders"] >= config.sandbox.pool;
        if Instant::now() > deadline || (is_full && now == last && is_right(&now)) {
            return now;
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn counters(config: &Config) -> Counters {
    let mut all: Counters = traces(config)
        .into_iter()
        .map(|(kind, found)| (kind, found.len()))
        .collect();
    all.entry("folders").or_default();
    for (kind, args) in [
        ("containers", &["container", "ls", "-q"][..]),
        ("images", &["image", "ls", "-q"]),
        ("leases", &["leases", "ls", "-q"]),
        ("snapshots", &["snapshot", "ls"]),
        ("tasks", &["task", "ls", "-q"]),
    ] {
        all.insert(kind, listed(config, args));
    }
    let runc = Path::new("/run/containerd/runc").join(&config.containerd.namespace);
    all.insert("runc", entries(&runc));
    // Of this process alone, which `cargo test` shares among tests and nextest does not.
    if std::env::var_os("NEXTEST").is_some() {
        all.insert("descriptors", entries(Path::new("/proc/self/fd")));
        all.insert("threads", threads());
    }
    all
}

fn listed(config: &Config, args: &[&str]) -> usize {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(config.containerd_socket())
        .args(["--namespace", &config.containerd.namespace])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().count()
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Without those of tokio, which come and go with the work and have a bound of their own.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| !name.starts_with("tokio"))
        .count()
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}
