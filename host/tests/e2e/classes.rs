//! Classes while the node runs: read anew, tried, shown. The values are those of the machine's cgroups.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::node::Node;

/// What the kernel says of a class: the first of these files that it has.
fn kernel(node: &Node, class: &str, files: [&str; 2]) -> Result<String> {
    let shown: Value = serde_json::from_str(&node.opr("class", &["show", class, "--json"])?)?;
    let found = files
        .iter()
        .find_map(|file| shown["kernel"][*file].as_str());
    Ok(found.context("no such file")?.to_owned())
}

/// Version 1 has shares, 1,024 where version 2 has a weight of 100.
fn weight(node: &Node, class: &str) -> Result<u64> {
    let files = ["cpu.weight", "cpu.shares"];
    let weight: u64 = kernel(node, class, files)?.parse()?;
    Ok(if weight >= 512 {
        weight * 100 / 1024
    } else {
        weight
    })
}

/// A node with a function that has an instance, and the settings that were dropped in beside its own.
fn node(dropped: &str) -> Result<Node> {
    let node = Node::start()?;
    node.import_runtime("node")?;
    let text = "module.exports = async ({ res }) => res.text('hello');";
    crate::functions::deploy(&node, "hello", text, &[])?;
    node.get("/hello/")?;
    fs::create_dir(node.dir().join("opr.toml.d"))?;
    fs::write(node.dir().join("opr.toml.d/10.toml"), dropped)?;
    Ok(node)
}

#[test]
fn a_reload_changes_limits_while_functions_run() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = node(
        "drain_timeout_ms = 9_999\n\
         [class.function]\n'cpu.weight' = 400\n'memory.max' = 2048\n'pids.max' = 99\n\
         [class.new]\n'memory.high' = 100\n",
    )?;
    let created = |node: &Node| -> Result<Value> {
        let list: Value = serde_json::from_str(&node.opr("ps", &["--json"])?)?;
        Ok(list[0]["created"].clone())
    };
    let before = created(&node)?;
    let told = node.opr("reload", &[])?;
    assert!(told.contains("next start on: drain_timeout_ms"), "{told}");
    assert_eq!(weight(&node, "function")?, 400);
    let memory = kernel(&node, "function", ["memory.max", "memory.limit_in_bytes"])?;
    assert_eq!(memory, (2048_u64 << 20).to_string());
    assert_eq!(sandboxes_pids(&node), "99\n");
    assert_eq!(created(&node)?, before, "the instance went on");

    let source = node.dir().join("source-hello");
    node.deploy(&source, "other", &["--class", "new"])?;
    let unknown = node
        .deploy(&source, "other", &["--class", "old"])
        .unwrap_err()
        .to_string();
    let known = "there is no class old; the settings have build, function, new";
    assert!(unknown.contains(known), "{unknown}");
    Ok(())
}

/// What the running sandboxes of class `function` have as `pids.max`.
fn sandboxes_pids(node: &Node) -> String {
    let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].into_iter();
    let groups = roots.map(|root| format!("{root}/{}/function", node.namespace()));
    let sandboxes = groups
        .filter_map(|group| fs::read_dir(group).ok())
        .flatten()
        .flatten();
    sandboxes
        .filter_map(|entry| fs::read_to_string(entry.path().join("pids.max")).ok())
        .collect()
}

#[test]
fn a_wrong_file_changes_nothing_and_says_where_it_is_wrong() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = node("[class.function]\n'cpu.weight' = 400\n")?;
    node.opr("reload", &[])?;
    let wrong = node.dir().join("opr.toml.d/20.toml");
    fs::write(
        &wrong,
        "[class.function]\n'cpu.weight' = 500\n'pids.max' = 0\n",
    )?;
    let refused = node.opr("reload", &[]).unwrap_err().to_string();
    fs::remove_file(wrong)?;
    assert!(
        refused.contains("20.toml, line 3: 0 is not 1 or more"),
        "{refused}"
    );
    assert_eq!(weight(&node, "function")?, 400);
    Ok(())
}

#[test]
fn a_class_is_changed_on_trial() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = node("[class.function]\n'cpu.weight' = 400\n")?;
    let told = node.opr(
        "class",
        &["try", "function", "cpu.weight=800", "cpu.max=1.5"],
    )?;
    let lines = "[class.function]\n\"cpu.weight\" = 800\n\"cpu.max\" = 1.5";
    assert!(told.contains(lines), "{told}");
    assert_eq!(weight(&node, "function")?, 800);
    for (change, reason) in [
        ("cpu.weight=0", "0 is not from 1 to 10000"),
        ("cpu.wait=1", "unknown field `cpu.wait`"),
        ("io.max=[\"/dev/absent rbps=1\"]", "No such file"),
    ] {
        let refused = node
            .opr("class", &["try", "function", change])
            .unwrap_err()
            .to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    assert_eq!(
        weight(&node, "function")?,
        800,
        "what was refused changed nothing"
    );
    node.opr("reload", &[])?;
    assert_eq!(weight(&node, "function")?, 400);
    Ok(())
}

#[test]
fn top_tells_what_instances_use() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    node.import_runtime("node")?;
    let burn = "module.exports = async ({ res }) => {
        const used = () => process.cpuUsage().user; const end = used() + 200_000;
        while (used() < end); return res.text('done'); };";
    crate::functions::deploy(&node, "burn", burn, &["--memory", "256"])?;
    for _ in 0..3 {
        node.get("/burn/")?;
    }
    let shown: Value = serde_json::from_str(&node.opr("top", &["--json", "--delay", "0.1"])?)?;
    let instance = &shown[0];
    assert_eq!(instance["function"], "burn");
    assert_eq!(instance["n_executions_total"], 3);
    assert_eq!(instance["memory_max_bytes"], 256_000_000 / 4096 * 4096);
    assert!(instance["cpu_s"].as_f64().unwrap() > 0.5, "{shown}");
    assert!(
        instance["memory_bytes"].as_u64().unwrap() > 10 << 20,
        "{shown}"
    );
    let text = node.opr("top", &["--count", "1", "--delay", "0.1"])?;
    assert!(
        text.starts_with("INSTANCE") && text.contains("burn"),
        "{text}"
    );
    Ok(())
}
