//! Functions: deployed with `opr`, invoked through the gateway.

use std::{fs, path::Path};

use anyhow::Result;

use crate::node::Node;

fn example() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtimes/node/example")
}

/// Writes a node function of this text, and deploys it.
pub(crate) fn deploy(node: &Node, name: &str, text: &str, args: &[&str]) -> Result<()> {
    let folder = node.dir().join(format!("source-{name}"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("index.js"), text)?;
    node.deploy(&folder, name, args).map(drop)
}

#[test]
fn the_example_is_deployed_and_answers() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    node.import_runtime("node")?;
    node.deploy(&example(), "hello", &["--runtime", "node-22"])?;

    let cold = node.get("/hello/")?;
    assert_eq!(cold.status, 200, "{}\n{}", cold.text(), node.log());
    let timing = cold.header("server-timing").unwrap_or_default().to_owned();
    for phase in ["sandbox", "create", "start", "boot", "first_byte"] {
        assert!(timing.contains(phase), "{phase} is not in {timing:?}");
    }
    let warm = node.get("/hello/")?;
    assert_eq!(warm.status, 200);
    assert!(
        !warm
            .header("server-timing")
            .unwrap_or_default()
            .contains("boot")
    );
    assert_eq!(cold.header("x-open-runtimes-log-id"), None);
    assert_eq!(node.get("/absent/")?.status, 404);
    Ok(())
}

#[test]
fn a_build_finds_what_the_one_before_kept_until_the_function_is_removed() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    node.import_runtime("node")?;
    let text = "const fs = require('node:fs');
        module.exports = async ({ res }) => res.text(fs.readFileSync(`${__dirname}/found`, 'utf8'));";
    let mark = "/usr/local/cache/build/mark";
    let command = format!("cp {mark} found || echo nothing > found; echo kept > {mark}");
    let found = || -> Result<String> {
        deploy(&node, "hello", text, &["--command", &command])?;
        Ok(node.get("/hello/")?.text())
    };
    assert_eq!([found()?, found()?], ["nothing\n", "kept\n"]);
    node.opr("rm", &["hello"])?;
    assert_eq!(found()?, "nothing\n");
    Ok(())
}

#[test]
fn a_function_sees_the_request_as_the_client_sent_it() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    node.import_runtime("node")?;
    let text = "module.exports = async ({ req, res }) => res.json({
        method: req.method, path: req.path, query: req.queryString, url: req.url,
        forwarded: req.headers['x-forwarded-for'], secret: req.headers['x-open-runtimes-secret'] ?? null,
        body: req.bodyText.length, variable: process.env.GREETING });";
    deploy(
        &node,
        "echo",
        text,
        &["--runtime", "node-22", "--env", "GREETING=hi"],
    )?;

    let body = vec![b'x'; 3_000_000];
    let headers = [
        ("host", "api.example"),
        ("x-forwarded-proto", "https"),
        ("x-open-runtimes-secret", "no"),
    ];
    let answer = node.send("POST", "/echo/a%20b/c?x=1&y=", &headers, &body)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = answer.json();
    assert_eq!(seen["method"], "POST");
    assert_eq!(seen["path"], "/a%20b/c");
    assert_eq!(seen["query"], "x=1&y=");
    assert_eq!(seen["secret"], serde_json::Value::Null);
    assert_eq!(seen["body"], 3_000_000);
    assert_eq!(seen["variable"], "hi");
    assert_eq!(seen["forwarded"], "127.0.0.1");
    Ok(())
}

#[test]
fn fifty_requests_to_an_absent_function_start_one_container() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    node.import_runtime("node")?;
    let text =
        "const id = Math.random(); module.exports = async ({ res }) => res.text(String(id));";
    deploy(&node, "one", text, &["--runtime", "node-22"])?;
    let answers: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..50).map(|_| scope.spawn(|| node.get("/one/"))).collect();
        calls
            .into_iter()
            .map(|call| call.join().expect("no panic"))
            .collect::<Result<_>>()
    })?;
    let first = answers[0].text();
    assert!(
        answers.iter().all(|a| a.status == 200 && a.text() == first),
        "{answers:?}"
    );
    Ok(())
}
