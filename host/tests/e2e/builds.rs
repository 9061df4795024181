//! Builds and commands as clients of the executor API use them. Cases are named by the conformance list of the
//! upstream executor's own suite; those in PHP there are in node here, where the language does not matter.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use crate::node::{Answer, Node, SECRET, request};

/// What machines trust that reach the package registries by way of a proxy.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

type Case = fn(&Node) -> Result<()>;

/// Cases by name.
macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as Case)),*] };
}

mod artifacts;
mod caches;
mod failures;
mod languages;
mod logs;

/// Runs cases in one node, all at once, and names the ones that fail.
fn run(cases: &[(&str, Case)]) -> Result<()> {
    run_with(&["node"], cases)
}

/// As [`run`], with the images of these runtimes.
fn run_with(runtimes: &[&str], cases: &[(&str, Case)]) -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start_with("[executor]\nruntime_versions = ['v2', 'v5']")?;
    for runtime in runtimes {
        node.import_runtime(runtime)?;
    }
    let failed: Vec<_> = thread::scope(|scope| {
        let node = &node;
        let started: Vec<_> = cases
            .iter()
            .map(|(name, case)| (name, scope.spawn(move || case(node))))
            .collect();
        let ended = started.into_iter().map(|(name, case)| (name, case.join()));
        ended
            .filter_map(|(name, outcome)| match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{name}: {error:#}")),
                Err(_) => Some(format!("{name}: see above")),
            })
            .collect()
    });
    ensure!(failed.is_empty(), "{}\n{}", failed.join("\n"), node.log());
    let listed = node.api("GET", "/v1/runtimes", &json!({}))?;
    ensure!(
        listed.json() == json!([]),
        "instances are left: {}",
        listed.text()
    );
    Ok(())
}

/// A file of this function's, as clients' builds name it.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/e2e/functions")
        .join(name)
}

/// The archive of a test function, with what the machine trusts.
fn source(node: &Node, name: &str) -> Result<String> {
    let path = node
        .dir()
        .join(format!("storage/{name}-{:08x}/code.tar.gz", unique()));
    fs::create_dir_all(path.parent().context("it has a folder")?)?;
    let gzip = GzEncoder::new(fs::File::create(&path)?, Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    archive.append_dir_all(".", folder(name))?;
    if Path::new(CERTIFICATES).exists() {
        archive.append_path_with_name(CERTIFICATES, "ca-certificates.crt")?;
    }
    archive.into_inner()?.finish()?;
    Ok(path.display().to_string())
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::SeqCst)
}

/// What the upstream suite builds with: unpacks the source and lets the image's helper build it.
fn build_command(command: &str) -> String {
    format!("tar -zxf /tmp/code.tar.gz -C /mnt/code && bash helpers/build.sh \"{command}\"")
}

/// The parameters of a build, changed by `more`.
fn order(node: &Node, id: &str, function: &str, more: Value) -> Result<Value> {
    let mut order = json!({
        "runtimeId": id, "image": crate::IMAGE, "entrypoint": "index.js",
        "source": source(node, function)?, "destination": destination(node),
        "variables": { "NODE_EXTRA_CA_CERTS": "/mnt/code/ca-certificates.crt", "STEP_MS": "150" },
        "remove": true, "workdir": "/ignored",
    });
    let (all, more) = (order.as_object_mut(), more);
    let all = all.context("it is an object")?;
    for (name, value) in more.as_object().into_iter().flatten() {
        match (all.get_mut(name), value) {
            (Some(Value::Object(variables)), Value::Object(added)) => {
                variables.extend(added.clone())
            }
            _ => drop(all.insert(name.clone(), value.clone())),
        }
    }
    Ok(order)
}

/// The parameters of a build that only runs a command.
fn line(id: &str, command: &str) -> Value {
    json!({ "runtimeId": id, "image": crate::IMAGE, "command": command, "remove": true })
}

fn destination(node: &Node) -> String {
    node.dir().join("storage/builds").display().to_string()
}

fn create(node: &Node, order: &Value, status: u16) -> Result<Answer> {
    let answer = node.api("POST", "/v1/runtimes", order)?;
    ensure!(
        answer.status == status,
        "{} {}",
        answer.status,
        answer.text()
    );
    Ok(answer)
}

fn built(node: &Node, order: &Value) -> Result<Value> {
    create(node, order, 201).map(|answer| answer.json())
}

fn path(built: &Value) -> Result<&str> {
    built["path"]
        .as_str()
        .filter(|path| !path.is_empty())
        .context("it has a path")
}

/// All that a build wrote.
fn output(built: &Value) -> String {
    let elements = built["output"].as_array().into_iter().flatten();
    elements
        .filter_map(|element| element["content"].as_str())
        .collect()
}

fn logs(node: &Node, id: &str) -> Result<Answer> {
    let url = node.api_url(&format!("/v1/runtimes/{id}/logs?timeout=100"));
    request(
        "GET",
        &url,
        &[("authorization", &format!("Bearer {SECRET}"))],
        &[],
    )
}

/// Time and content of each line of a log stream.
fn records(answer: &Answer) -> Result<Vec<(String, String)>> {
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    ensure!(answer.header("content-type") == Some("text/event-stream"));
    let text = answer.text();
    let lines = text.split('\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (time, content) = line
                .split_once(' ')
                .with_context(|| format!("no record: {line}"))?;
            Ok((time.to_owned(), content.to_owned()))
        })
        .collect()
}

/// One execution in an instance that is made for it; it is deleted afterwards.
fn execute(node: &Node, id: &str, source: &str, more: Value) -> Result<Value> {
    let mut execution = json!({
        "image": crate::IMAGE, "source": source, "entrypoint": "index.js",
        "runtimeEntrypoint": crate::START, "timeout": 45,
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        execution[name] = value.clone();
    }
    let answer = node.api("POST", &format!("/v1/runtimes/{id}/executions"), &execution)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    delete(node, id, 200)?;
    let result = answer.json();
    ensure!(result["statusCode"] == 200, "{result}");
    Ok(result)
}

fn delete(node: &Node, id: &str, status: u16) -> Result<()> {
    let answer = node.api("DELETE", &format!("/v1/runtimes/{id}"), &json!({}))?;
    ensure!(
        answer.status == status,
        "{} {}",
        answer.status,
        answer.text()
    );
    Ok(())
}

fn command(node: &Node, id: &str, parameters: &Value) -> Result<Answer> {
    node.api("POST", &format!("/v1/runtimes/{id}/commands"), parameters)
}

/// A failed build: its status, type and message.
fn failed(node: &Node, order: &Value) -> Result<(u16, String, String)> {
    let answer = node.api("POST", "/v1/runtimes", order)?;
    let error = answer.json();
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    Ok((answer.status, text("type"), text("message")))
}
