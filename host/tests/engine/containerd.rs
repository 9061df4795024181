//! containerd's own life: killed and started again, or run by somebody else.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use opr_host::{
    adapter::{Adapter, Sandbox},
    telemetry::chain,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    node::{Node, SERVER, exit_of, fetch, is_able, sandbox, shim_dir, tmp},
    traces::traces,
};

const WAITS: &str = "until [ -e /tmp/go ]; do sleep 0.02; done; echo goes; exit 9";

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_and_their_exits_outlive_a_containerd_that_is_killed() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    node.adapter.adopt().await.unwrap();
    let mut events = node.adapter.events();
    let server = sandbox("server", "function", &SERVER);
    node.adapter.create(server.clone()).await.unwrap();
    fetch(&node, &server.id).await;
    let meanwhile = waiting(&node, "meanwhile").await;
    let later = waiting(&node, "later").await;

    let first = pid(&node);
    let killed = Instant::now();
    kill_process(first, Signal::KILL).unwrap();
    go(&meanwhile);
    fetch(&node, &server.id).await;
    assert_eq!(exit_of(&mut events, &meanwhile.id).await, 9);
    println!("an exit was told {:?} after the kill", killed.elapsed());
    assert_eq!(meanwhile.output.tail(), b"goes\n");
    assert_ne!(pid(&node), first);
    go(&later);
    assert_eq!(exit_of(&mut events, &later.id).await, 9);
    fetch(&node, &server.id).await;
    let spec = sandbox("new", "function", &["sh", "-c", "exit 3"]);
    node.adapter.create(spec.clone()).await.unwrap();
    assert_eq!(exit_of(&mut events, &spec.id).await, 3);

    for id in [&server.id, &meanwhile.id, &later.id, &spec.id] {
        node.adapter.delete(id).await.unwrap();
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_containerd_dies_in_is_undone_by_itself() {
    if !is_able() {
        return;
    }
    let node = Arc::new(Node::start().await);
    node.adapter.adopt().await.unwrap();
    for pause in [20, 60, 120] {
        let creations: Vec<_> = (0..3)
            .map(|n| {
                let node = node.clone();
                let spec = sandbox(&format!("dark-{n}"), "function", &SERVER);
                tokio::spawn(async move { node.adapter.create(spec).await.map(|made| made.id) })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        kill_process(pid(&node), Signal::KILL).unwrap();
        let (mut n_made, mut failures) = (0, vec![]);
        for creation in creations {
            match creation.await.unwrap() {
                Ok(id) => {
                    n_made += 1;
                    fetch(&node, &id).await;
                    eventually("deleted", async || node.adapter.delete(&id).await.is_ok()).await;
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        println!("killed after {pause} ms: {n_made} made, failures {failures:?}");
        let is_gone = async || {
            let folders = traces(&node.config).remove("folders").unwrap_or_default();
            !folders.iter().any(|path| path.contains("/dark-"))
        };
        eventually("undone", is_gone).await;
        // containerd is back. What it remembers of a name that it died with is its own affair: the executor
        // never uses one twice.
        let again = sandbox(&format!("again-{pause}"), "function", &SERVER);
        eventually("made again", async || {
            let made = node.adapter.create(again.clone()).await;
            made.inspect_err(|error| eprintln!("not yet: {}", chain(error)))
                .is_ok()
        })
        .await;
        node.adapter.delete(&again.id).await.unwrap();
    }
    Arc::into_inner(node).unwrap().end().await;
}

async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "not {what} in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_a_containerd_that_somebody_else_runs_and_leaves_it_running() {
    if !is_able() {
        return;
    }
    let mut other = Other::start();
    let address = other.dir.path().join("containerd.sock");
    let mut node = Node::start_with(|config| config.containerd.address = Some(address)).await;
    let server = sandbox("server", "function", &SERVER);
    node.adapter.create(server.clone()).await.unwrap();
    fetch(&node, &server.id).await;
    assert!(!node.config.run_dir.join("containerd").exists());

    assert_eq!(node.restart().await.len(), 1);
    fetch(&node, &server.id).await;
    let mut events = node.adapter.events();
    node.adapter.delete(&server.id).await.unwrap();
    assert_eq!(exit_of(&mut events, &server.id).await, 137);
    node.end().await;
    assert!(other.process.try_wait().unwrap().is_none(), "it was ended");
}

async fn waiting(node: &Node, id: &str) -> Sandbox {
    let mut spec = sandbox(id, "function", &["sh", "-c", WAITS]);
    spec.mounts = vec![tmp()];
    node.adapter.create(spec).await.unwrap()
}

fn go(sandbox: &Sandbox) {
    fs::write(sandbox.scratch_dir("tmp").join("go"), "").unwrap();
}

fn pid(node: &Node) -> Pid {
    let file = node.config.run_dir.join("containerd/containerd.pid");
    let text = fs::read_to_string(file).unwrap();
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

/// A containerd that is no node's.
struct Other {
    process: Child,
    dir: tempfile::TempDir,
}

impl Other {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("containerd.sock")
        );
        fs::write(path("config.toml"), config).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let own = std::env::var_os("PATH").unwrap();
        let all = [shim_dir()].into_iter().chain(std::env::split_paths(&own));
        let process = Command::new("containerd")
            .args(["--config", &path("config.toml")])
            .env("PATH", std::env::join_paths(all).unwrap())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !Path::new(&path("containerd.sock")).exists() {
            assert!(Instant::now() < deadline, "containerd did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, dir }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
