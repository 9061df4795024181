//! A node whose parts die.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

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
    let pid =
        fs::read_to_string(node.dir().join("run/containerd/containerd.pid")).context("its pid")?;
    let pid = rustix::process::Pid::from_raw(pid.trim().parse()?).context("a pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
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
