//! Functions and requests that mean harm, or are just wrong: each gets a clear answer, and the node goes on.

use std::{fs, io::Write};

use anyhow::Result;
use flate2::{Compression, write::GzEncoder};
use serde_json::json;

use crate::{
    functions::deploy,
    node::{Node, SECRET, request},
};

const FINE: &str = "module.exports = async ({ res }) => res.text('fine');";

/// A node with a function that must go on to answer.
fn node_with_neighbour() -> Result<Node> {
    let node = Node::start()?;
    node.import_runtime("node")?;
    deploy(&node, "good", FINE, &["--runtime", "node-22"])?;
    Ok(node)
}

#[track_caller]
fn check_neighbour(node: &Node, after: &str) {
    let answer = node.get("/good/").unwrap();
    let seen = (answer.status, answer.text());
    assert_eq!(seen, (200, "fine".into()), "after {after}\n{}", node.log());
}

#[test]
fn a_bad_function_harms_only_itself() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = node_with_neighbour()?;
    // Name, code, and the type of its answer.
    let bad = [
        (
            "exits",
            "module.exports = async () => process.exit(3);",
            "runtime_exited",
        ),
        (
            "at-load",
            "console.error('no such thing'); process.exit(4);",
            "runtime_exited",
        ),
        (
            "throws",
            "module.exports = async () => { throw new Error('on purpose'); };",
            "",
        ),
        (
            "hangs",
            "module.exports = async () => new Promise(() => {});",
            "",
        ),
        ("spins", "module.exports = async () => { for (;;); };", ""),
        (
            "eats",
            "const kept = []; module.exports = async () => { for (;;) kept.push(Buffer.alloc(1 << 24, 1)); };",
            "runtime_out_of_memory",
        ),
        (
            "forks",
            "const { spawn } = require('child_process'); module.exports = async () => { for (;;) { spawn('sleep', ['60']).on('error', () => {}); await new Promise(setImmediate); } };",
            "",
        ),
    ];
    for (name, code, told) in bad {
        let args = ["--runtime", "node-22", "--timeout", "2", "--memory", "128"];
        deploy(&node, name, code, &args)?;
        let answer = node.get(&format!("/{name}/"))?;
        assert!(
            answer.status >= 500,
            "{name}: {} {}",
            answer.status,
            answer.text()
        );
        assert!(answer.text().contains(told), "{name}: {}", answer.text());
        check_neighbour(&node, name);
    }
    Ok(())
}

#[test]
fn logs_without_end_are_cut() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = node_with_neighbour()?;
    let code = "module.exports = async ({ res, log }) => {
        for (let i = 0; i < 20000; i++) { log('x'.repeat(1000)); process.stdout.write('y'.repeat(1000) + '\\n'); }
        return res.text('done'); };";
    let source = node.archive(code)?;
    let execution = json!({
        "image": crate::IMAGE, "source": source, "entrypoint": "index.js",
        "runtimeEntrypoint": crate::START, "timeout": 45,
    });
    let answer = node.api("POST", "/v1/runtimes/floods/executions", &execution)?;
    let result = answer.json();
    assert_eq!(result["body"], "done", "{}", node.log());
    let logs = result["logs"].as_str().unwrap_or_default();
    assert!(
        logs.ends_with("Log file has been truncated to 5.00MB."),
        "{}",
        logs.len()
    );
    check_neighbour(&node, "a flood");
    Ok(())
}

#[test]
fn log_files_that_are_links_or_fifos_do_no_harm() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = node_with_neighbour()?;
    // The server names the log file in its answer before it writes; the function puts traps in the way.
    let code = "const fs = require('fs'); const { execSync } = require('child_process');
        fs.symlinkSync('/etc/hostname', '/mnt/logs/trap_logs.log');
        execSync('mkfifo /mnt/logs/trap_errors.log');
        const http = require('http'); const write = http.ServerResponse.prototype.writeHead;
        http.ServerResponse.prototype.writeHead = function (...args) {
            this.setHeader('x-open-runtimes-log-id', 'trap'); return write.apply(this, args); };
        module.exports = async ({ res }) => res.text('done');";
    let source = node.archive(code)?;
    let execution = json!({
        "image": crate::IMAGE, "source": source, "entrypoint": "index.js",
        "runtimeEntrypoint": crate::START, "timeout": 45,
    });
    let result = node
        .api("POST", "/v1/runtimes/trap/executions", &execution)?
        .json();
    assert_eq!(result["body"], "done", "{result}\n{}", node.log());
    assert_eq!(
        (&result["logs"], &result["errors"]),
        (&json!(""), &json!(""))
    );
    check_neighbour(&node, "traps");
    Ok(())
}

/// A gzipped archive whose one entry `fill` has made.
fn archive(fill: impl FnOnce(&mut tar::Builder<GzEncoder<Vec<u8>>>)) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    fill(&mut archive);
    archive.into_inner().unwrap().finish().unwrap()
}

fn header(kind: tar::EntryType, name: &[u8], link: &str) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(0);
    // Set by hand: the library refuses what a hostile archive may hold.
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    if !link.is_empty() {
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_cksum();
    header
}

/// Artifacts as a build could leave them, and what the refusal names.
fn hostile_artifacts() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    use tar::EntryType::{Char, Fifo, Link, Symlink};
    let one = |kind, name: &str, link: &str| {
        let header = header(kind, name.as_bytes(), link);
        archive(|archive| archive.append(&header, std::io::empty()).unwrap())
    };
    let bomb = {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        let mut header = header(tar::EntryType::Regular, b"zeros", "");
        header.set_size(8 << 30);
        header.set_cksum();
        gzip.write_all(header.as_bytes()).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..600 {
            gzip.write_all(&zeros).unwrap();
        }
        gzip.finish().unwrap()
    };
    let many = archive(|archive| {
        for n in 0..1_000_000 {
            let header = header(tar::EntryType::Regular, format!("f{n}").as_bytes(), "");
            archive.append(&header, std::io::empty()).unwrap();
        }
    });
    vec![
        (
            "parent",
            one(tar::EntryType::Regular, "../evil", ""),
            "../evil",
        ),
        (
            "absolute",
            one(tar::EntryType::Regular, "/etc/evil", ""),
            "/etc/evil",
        ),
        ("link", one(Symlink, "evil", "/etc/passwd"), "evil"),
        ("hardlink", one(Link, "evil", "/etc/passwd"), "evil"),
        ("device", one(Char, "evil", ""), "evil"),
        ("fifo", one(Fifo, "evil", ""), "evil"),
        ("bomb", bomb, "zeros"),
        ("many", many, "entries"),
        ("noise", vec![0x1f, 0x8b, 1, 2, 3], ""),
    ]
}

#[test]
fn a_hostile_artifact_is_refused_and_the_function_before_it_stays() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = node_with_neighbour()?;
    let folder = node.dir().join("source-hostile");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("index.js"), FINE)?;
    // The build packs with `tar`: this one leaves what came with the source in its place.
    let command = "printf '#!/bin/sh\\ncp /usr/local/build/hostile.bin /mnt/code/code.tar.gz\\n' > /usr/local/sbin/tar && chmod +x /usr/local/sbin/tar";
    for (name, artifact, told) in hostile_artifacts() {
        fs::write(folder.join("hostile.bin"), &artifact)?;
        let refused = node.deploy(
            &folder,
            "good",
            &["--runtime", "node-22", "--command", command],
        );
        let error = format!("{:#}", refused.expect_err(name));
        assert!(error.contains(told), "{name}: {error}");
        check_neighbour(&node, name);
    }
    assert!(!std::path::Path::new("/etc/evil").exists());
    Ok(())
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start_on_small_disk(512)?;
    node.import_runtime("node")?;
    deploy(&node, "good", FINE, &["--runtime", "node-22"])?;
    let folder = node.dir().join("source-large");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("index.js"), FINE)?;
    let command = "head -c 1000000000 /dev/urandom > large || true; ls -l large";
    let refused = node.deploy(
        &folder,
        "large",
        &["--runtime", "node-22", "--command", command],
    );
    let error = format!("{:#}", refused.expect_err("a full disk"));
    assert!(error.to_lowercase().contains("space"), "{error}");
    check_neighbour(&node, "a full disk");
    deploy(&node, "next", FINE, &["--runtime", "node-22"])?;
    assert_eq!(node.get("/next/")?.text(), "fine");
    Ok(())
}

#[test]
fn a_wrong_deployment_is_refused_with_its_reason() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    node.import_runtime("node")?;
    let check = |args: &[&str], expected: &str| {
        let refused = deploy(&node, "wrong", FINE, args);
        let error = format!("{:#}", refused.expect_err("a refusal"));
        assert!(error.contains(expected), "{error}");
        assert_eq!(node.get("/wrong/").unwrap().status, 404);
    };
    check(
        &["--runtime", "cobol-60"],
        "there is no runtime \"cobol-60\"; this node knows",
    );
    check(
        &["--runtime", "node-22", "--command", "echo spoken && exit 7"],
        "7",
    );
    check(
        &["--runtime", "node-22", "--entrypoint", "absent.js"],
        "absent.js",
    );
    check(&["--runtime", "python"], "python");
    Ok(())
}

#[test]
fn wrong_requests_get_the_specified_answers() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    let url = node.api_url("/v1/runtimes");
    let key = format!("Bearer {SECRET}");
    let json_type = ("content-type", "application/json");

    let wrong = request("GET", &url, &[("authorization", "Bearer wrong")], &[])?;
    assert_eq!(wrong.status, 401);
    assert_eq!(wrong.json()["message"], "Missing executor key");

    let large = vec![b'x'; 23 * 1024 * 1024];
    let headers = [("authorization", key.as_str()), json_type];
    // The server may close before it has read all: both are refusals.
    if let Ok(answer) = request("POST", &url, &headers, &large) {
        assert_eq!(answer.status, 413);
    }

    let bad = request("POST", &url, &headers, b"{\"runtimeId\": ")?;
    assert_eq!(bad.status, 400);
    assert_eq!(
        bad.json()["message"],
        "Param \"runtimeId\" is not optional."
    );

    let absent =
        json!({ "runtimeId": "a", "image": "127.0.0.1:9/absent:1", "runtimeEntrypoint": "true" });
    let absent = node.api("POST", "/v1/runtimes", &absent)?;
    assert_eq!(absent.status, 500, "{}", absent.text());
    assert!(absent.text().contains("absent"), "{}", absent.text());
    assert_eq!(
        node.api("GET", "/v1/runtimes", &json!({}))?.json(),
        json!([])
    );
    Ok(())
}
