//! A node whose parts die.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{functions::deploy, node::Node};

const COUNTER: &str = "let n = 0; module.exports = async ({ res }) => res.text(String(++n));";
const SLOW: &str = "module.exports = async ({ res }) => {
    await new Promise((done) => setTimeout(done, 5000)); return res.text('late'); };";

#[test]
fn a_daemon_killed_under_load_adopts_its_instances() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let mut node = Node::start()?;
    node.import_runtime("node")?;
    deploy(&node, "counter", COUNTER, &["--runtime", "node-22"])?;
    deploy(&node, "slow", SLOW, &["--runtime", "node-22"])?;
    assert_eq!(node.get("/counter/")?.text(), "1");
    let url = node.url("/counter/");
    let slow = node.url("/slow/");
    let is_over = AtomicBool::new(false);
    let count = thread::scope(|scope| -> Result<u64> {
        for _ in 0..4 {
            // Answers and failures alike: what counts is what the instance has counted.
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let _ = crate::node::request("GET", &url, &[], &[]);
                }
            });
        }
        let in_flight = scope.spawn(|| crate::node::request("GET", &slow, &[], &[]));
        thread::sleep(Duration::from_millis(1500));
        node.kill()?;
        is_over.store(true, Ordering::SeqCst);
        let failed = in_flight.join().expect("no panic");
        assert!(
            failed.is_err(),
            "a request in flight was answered: {failed:?}"
        );
        node.spawn()?;
        Ok(node.get("/counter/")?.text().parse()?)
    })?;
    assert!(
        count > 2,
        "the instance was restarted: {count}\n{}",
        node.log()
    );
    assert_eq!(node.get("/slow/")?.text(), "late");
    assert_eq!(node.instances()?, 2, "{}", node.log());
    Ok(())
}

#[test]
fn a_restart_policy_outlives_the_daemon() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let mut node = Node::start()?;
    node.import_runtime("node")?;
    let code = "let n = 0; module.exports = ({ req, res }) => {
        if (req.path === '/exit') { process.exit(1); } return res.text(String(++n)); };";
    let call = |path: &str| serde_json::json!({ "path": path, "timeout": 30 });
    let mut first = call("/");
    first["source"] = node.archive(code)?.into();
    first["image"] = crate::IMAGE.into();
    first["entrypoint"] = "index.js".into();
    first["runtimeEntrypoint"] = crate::START.into();
    first["restartPolicy"] = "on-failure".into();
    let execute =
        |node: &Node, call: serde_json::Value| node.api("POST", "/v1/runtimes/a/executions", &call);
    assert_eq!(execute(&node, first)?.json()["body"], "1");
    node.kill()?;
    node.spawn()?;
    assert_eq!(execute(&node, call("/"))?.json()["body"], "2");
    assert_eq!(execute(&node, call("/exit"))?.status, 500);
    let again = execute(&node, call("/"))?;
    assert_eq!(
        again.json()["body"],
        "1",
        "{}\n{}",
        again.text(),
        node.log()
    );
    Ok(())
}

#[test]
fn a_restarted_daemon_knows_its_functions() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let mut node = Node::start()?;
    node.import_runtime("node")?;
    deploy(&node, "counter", COUNTER, &["--runtime", "node-22"])?;
    node.terminate()?;
    node.spawn()?;
    assert_eq!(node.get("/counter/")?.text(), "1");
    node.terminate()?;
    node.spawn()?;
    assert_eq!(node.get("/counter/")?.text(), "2");
    Ok(())
}

fn kill_containerd(node: &Node) -> Result<()> {
    let pid = node.dir().join("run/containerd/containerd.pid");
    let pid = fs::read_to_string(pid).context("its pid")?;
    let pid = rustix::process::Pid::from_raw(pid.trim().parse()?).context("a pid")?;
    Ok(rustix::process::kill_process(
        pid,
        rustix::process::Signal::KILL,
    )?)
}

#[test]
fn a_daemon_killed_in_a_build_leaves_nothing_of_it_and_keeps_what_was_built() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let mut node = Node::start()?;
    node.import_runtime("node")?;
    let kept = json!({
        "runtimeId": "kept", "image": crate::IMAGE, "source": node.archive(COUNTER)?,
        "command": "echo built > /mnt/code/result", "destination": "", "remove": false,
    });
    let built = node.api("POST", "/v1/runtimes", &kept)?;
    assert_eq!(built.status, 201, "{}", built.text());
    let build = json!({
        "runtimeId": "build", "image": crate::IMAGE, "command": "touch /tmp/begun; sleep 1000",
        "cacheKey": "key", "destination": node.dir().join("builds"), "remove": true,
    });
    let url = node.api_url("/v1/runtimes");
    let headers = [
        ("authorization", &*format!("Bearer {}", crate::node::SECRET)),
        ("content-type", "application/json"),
    ];
    thread::scope(|scope| -> Result<()> {
        let text = build.to_string();
        let building =
            scope.spawn(move || crate::node::request("POST", &url, &headers, text.as_bytes()));
        let begun = json!({ "command": "test -e /tmp/begun" });
        let has_begun = || node.api("POST", "/v1/runtimes/build/commands", &begun);
        while !has_begun().is_ok_and(|answer| answer.status == 200) {
            thread::sleep(Duration::from_millis(10));
        }
        node.kill()?;
        assert!(building.join().expect("no panic").is_err());
        Ok(())
    })?;
    node.spawn()?;
    // What was built before and stays is there, with its code.
    let command = json!({ "command": "cat /mnt/code/result; tar -tzf /tmp/code.tar.gz" });
    let told = node.api("POST", "/v1/runtimes/kept/commands", &command)?;
    let output = told.json()["output"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert_eq!(
        output,
        "built\nindex.js\n.open-runtimes\n",
        "{}",
        node.log()
    );
    let deleted = node.api("DELETE", "/v1/runtimes/kept", &json!({}))?;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    assert_eq!(node.instances()?, 0, "{}", node.log());
    for folder in ["run/sandboxes", "state/sandboxes", "state/staging"] {
        let left = fs::read_dir(node.dir().join(folder))?.count();
        assert_eq!(left, 0, "{folder}: {}", node.log());
    }
    Ok(())
}

#[test]
fn a_killed_containerd_comes_back_by_itself() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    node.import_runtime("node")?;
    deploy(&node, "counter", COUNTER, &["--runtime", "node-22"])?;
    deploy(&node, "other", COUNTER, &["--runtime", "node-22"])?;
    assert_eq!(node.get("/counter/")?.text(), "1");
    // A build in which it is killed does not notice.
    let build = json!({
        "runtimeId": "build", "image": crate::IMAGE, "remove": true,
        "command": "echo begun; touch /tmp/begun; sleep 3; echo ended",
    });
    let built = thread::scope(|scope| {
        let built = scope.spawn(|| node.api("POST", "/v1/runtimes", &build));
        let begun = json!({ "command": "test -e /tmp/begun" });
        let has_begun = || node.api("POST", "/v1/runtimes/build/commands", &begun);
        while !has_begun().is_ok_and(|answer| answer.status == 200) {
            thread::sleep(Duration::from_millis(10));
        }
        kill_containerd(&node)?;
        built.join().expect("no panic")
    })?;
    assert_eq!(built.status, 201, "{}\n{}", built.text(), node.log());
    assert_eq!(built.json()["output"][1]["content"], "ended\r\n");

    kill_containerd(&node)?;
    assert_eq!(node.get("/counter/")?.text(), "2");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = node.get("/other/")?;
        if answer.status == 200 {
            return Ok(());
        }
        let is_late = Instant::now() > deadline;
        assert!(!is_late, "{}\n{}", answer.text(), node.log());
        thread::sleep(Duration::from_millis(200));
    }
}
