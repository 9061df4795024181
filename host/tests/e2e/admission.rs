//! A node's memory budget, with real sandboxes.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::node::{Answer, Node};

/// Room for two instances of 256 MB, which are 245 MiB.
const SETTINGS: &str = "[admission]\n'memory.budget' = 520\nwait_ms = 500\n";
const ONE: u64 = 256_000_000;

/// Executes in a runtime, which is made where there is none; its function waits for so long.
fn execute(node: &Node, id: &str, memory_mb: u64, wait_ms: u64) -> Result<Answer> {
    let execution = json!({
        "image": crate::IMAGE, "source": node.dir().join("code.tar.gz"), "entrypoint": "index.js",
        "runtimeEntrypoint": crate::START, "timeout": 45, "memory": memory_mb, "body": wait_ms.to_string(),
    });
    let path = format!("/v1/runtimes/{id}/executions");
    node.api("POST", &path, &execution)
}

#[track_caller]
fn check(node: &Node, answer: Answer, status: u16, kind: Option<&str>) {
    assert_eq!(answer.status, status, "{}\n{}", answer.text(), node.log());
    if let Some(kind) = kind {
        assert_eq!(answer.json()["type"], kind);
        let comes_back = (status == 503).then_some("1");
        assert_eq!(answer.header("retry-after"), comes_back);
    }
}

/// Names of the instances.
fn instances(node: &Node) -> Result<Vec<String>> {
    let listed: Value = serde_json::from_str(&node.opr("ps", &["--json"])?)?;
    let listed = listed.as_array().context("a list")?.iter();
    let mut names: Vec<_> = listed
        .filter_map(|entry| entry["id"].as_str().map(Into::into))
        .collect();
    names.sort();
    Ok(names)
}

fn figure(node: &Node, name: &str) -> Result<u64> {
    let metrics = node.api("GET", "/metrics", &json!({}))?.text();
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    Ok(line.with_context(|| format!("no {name}"))?.parse()?)
}

/// Waits for what ends in the background.
fn wait_for(node: &Node, name: &str, expected: u64) -> Result<()> {
    wait_until(|| Ok(figure(node, name)? == expected))?;
    assert_eq!(figure(node, name)?, expected, "{name}");
    Ok(())
}

fn wait_until(is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so()? && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

const RESERVED: &str = "opr_memory_reserved_bytes";
const IN_FLIGHT: &str = "opr_executions_in_flight";
const WAITING: &str = "opr_instances_waiting";

/// A node with room for two, and a function that waits for as long as its body says.
fn node() -> Result<Node> {
    let node = Node::start_with(SETTINGS)?;
    node.import_runtime("node")?;
    node.archive(
        "module.exports = async ({ req, res }) => {
            await new Promise((done) => setTimeout(done, Number(req.bodyText || 0)));
            return res.text('done'); };",
    )?;
    Ok(node)
}

/// Calls `look` while two runtimes are in use; each has to answer in the end.
fn while_busy(node: &Node, look: impl FnOnce() -> Result<()>) -> Result<()> {
    thread::scope(|scope| {
        let busy = ["a", "b"].map(|id| scope.spawn(move || execute(node, id, 256, 6000)));
        wait_for(node, IN_FLIGHT, 2)?;
        look()?;
        for thread in busy {
            check(node, thread.join().expect("no panic")?, 200, None);
        }
        Ok(())
    })
}

/// Deletes all runtimes; nothing is reserved then.
fn empty(node: &Node) -> Result<()> {
    for id in instances(node)? {
        node.api("DELETE", &format!("/v1/runtimes/{id}"), &json!({}))?;
    }
    wait_for(node, RESERVED, 0)?;
    wait_for(node, WAITING, 0)
}

#[test]
fn a_budget_for_two_ends_idle_instances_and_refuses_beside_busy_ones() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = node()?;
    // Builds are not counted: this one may have more than all instances.
    let text = "module.exports = async ({ res }) => res.text('hello');";
    crate::functions::deploy(&node, "hello", text, &["--memory", "256"])?;
    for id in ["a", "c", "a", "b"] {
        check(&node, execute(&node, id, 256, 0)?, 200, None);
    }
    assert_eq!(instances(&node)?, ["a", "b"]);
    wait_for(&node, RESERVED, 2 * ONE)?;
    let large = execute(&node, "large", 1000, 0)?;
    check(&node, large, 400, Some("runtime_too_large"));

    while_busy(&node, || {
        let refused = execute(&node, "c", 256, 0)?;
        let message = refused.json()["message"].to_string();
        check(&node, refused, 503, Some("host_memory_full"));
        let expected = "its 245 MiB of memory do not fit: 489 of the 520 MiB";
        assert!(message.contains(expected), "{message}");
        check(&node, node.get("/hello/")?, 503, Some("host_memory_full"));
        // Those that are there go on.
        check(&node, execute(&node, "a", 256, 0)?, 200, None);
        let top = node.opr("top", &["--delay", "0.1"])?;
        let last = "489 of 520 MiB are reserved, 0 instances wait\n";
        assert!(top.ends_with(last), "{top}");
        Ok(())
    })?;
    // The one whose place it takes may need longer for its end than it waits.
    wait_until(|| Ok(node.get("/hello/")?.status == 200))?;
    check(&node, node.get("/hello/")?, 200, None);
    let evicted = "opr_instances_ended_total{reason=\"evicted\"}";
    assert_eq!(figure(&node, evicted)?, 2);
    node.opr("rm", &["hello"])?;
    empty(&node)
}

#[test]
fn a_reload_lets_in_who_waits_and_the_next_process_knows_what_is_reserved() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let mut node = node()?;
    fs::create_dir(node.dir().join("opr.toml.d"))?;
    let dropped = node.dir().join("opr.toml.d/10.toml");
    fs::write(&dropped, "[admission]\nwait_ms = 30_000\n")?;
    node.opr("reload", &[])?;
    while_busy(&node, || {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| execute(&node, "c", 256, 0));
            wait_for(&node, WAITING, 1)?;
            fs::write(&dropped, "[admission]\n'memory.budget' = 800\n")?;
            node.opr("reload", &[])?;
            check(&node, waiting.join().expect("no panic")?, 200, None);
            assert_eq!(instances(&node)?, ["a", "b", "c"]);
            Ok(())
        })
    })?;
    node.kill()?;
    node.spawn()?;
    assert_eq!(figure(&node, RESERVED)?, 3 * ONE);
    check(&node, execute(&node, "d", 256, 0)?, 200, None);
    wait_for(&node, RESERVED, 3 * ONE)?;
    empty(&node)
}

/// The node's only sandbox goes away, and at once the next is made.
#[test]
fn runtimes_take_turns_where_there_is_room_for_one() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = node()?;
    for id in ["a", "b"].repeat(15) {
        check(&node, execute(&node, id, 500, 0)?, 200, None);
    }
    let evicted = "opr_instances_ended_total{reason=\"evicted\"}";
    assert_eq!(figure(&node, evicted)?, 29);
    empty(&node)
}

#[test]
fn wrong_values_of_admission_are_refused_with_their_line() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start_with(SETTINGS)?;
    fs::create_dir(node.dir().join("opr.toml.d"))?;
    let wrong = node.dir().join("opr.toml.d/20.toml");
    for (line, reason) in [
        (
            "'memory.budget' = '0%'",
            "expected MiB, 1 or more, or a share",
        ),
        (
            "'io.pressure' = { some = 101 }",
            "101 is no percentage: more than 0, 100 at most",
        ),
    ] {
        fs::write(&wrong, format!("[admission]\nqueue = 10\n{line}\n"))?;
        let refused = node.opr("reload", &[]).unwrap_err().to_string();
        assert!(refused.contains("20.toml, line 3: "), "{refused}");
        assert!(refused.contains(reason), "{refused}");
    }
    fs::write(
        &wrong,
        "[admission]\npressure_dir = '/nowhere'\n'cpu.pressure' = { some = 90 }\n",
    )?;
    let told = node.opr("reload", &[])?;
    assert!(
        told.contains("this kernel lacks admission.cpu.pressure"),
        "{told}"
    );
    let output = node.command("doctor").output()?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    fs::remove_file(wrong)?;
    assert!(!output.status.success(), "{told}");
    assert!(
        told.contains("/nowhere has no figures for cpu.pressure"),
        "{told}"
    );
    assert_eq!(figure(&node, "opr_memory_budget_bytes")?, 520 << 20);
    Ok(())
}
