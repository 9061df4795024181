//! What clients of the executor API see, by the numbers of its conformance list. The functions in other languages than
//! Node.js are written for that one: the executor does not see the difference.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::node::{Answer, Node, SECRET, request};

/// A call that ends otherwise than it should says what came.
#[track_caller]
fn expect(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text());
}

/// The parameters of a cold start.
fn cold(node: &Node, function: &str) -> Result<Value> {
    Ok(json!({
        "image": crate::IMAGE, "source": node.pack(function)?, "entrypoint": "index.js",
        "runtimeEntrypoint": crate::START, "timeout": 45,
    }))
}

/// `base` with the members of `more`.
fn with(base: &Value, more: Value) -> Value {
    let (mut base, more) = (base.clone(), more);
    for (name, value) in more.as_object().expect("an object") {
        base[name] = value.clone();
    }
    base
}

fn execute(node: &Node, id: &str, call: &Value) -> Result<Answer> {
    node.api("POST", &format!("/v1/runtimes/{id}/executions"), call)
}

/// Executes with these headers; the body is JSON.
fn execute_with(node: &Node, id: &str, call: &Value, more: &[(&str, &str)]) -> Result<Answer> {
    let url = node.api_url(&format!("/v1/runtimes/{id}/executions"));
    let key = format!("Bearer {SECRET}");
    let head = [
        ("authorization", key.as_str()),
        ("content-type", "application/json"),
    ];
    request(
        "POST",
        &url,
        &[&head, more].concat(),
        call.to_string().as_bytes(),
    )
}

fn delete(node: &Node, id: &str) -> Result<u16> {
    Ok(node
        .api("DELETE", &format!("/v1/runtimes/{id}"), &json!({}))?
        .status)
}

/// The parts of a multipart answer by name, as known clients read them.
fn parts(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let kind = answer.header("content-type").unwrap_or_default();
    let boundary = kind.split_once("boundary=").expect("a boundary").1;
    let delimiter = format!("--{boundary}");
    let find = |text: &[u8], part: &[u8]| text.windows(part.len()).position(|w| w == part);
    let (mut rest, mut parts) = (&answer.body[..], Vec::new());
    while let Some(at) = find(rest, delimiter.as_bytes()) {
        let part = &rest[..at];
        if let Some(end) = find(part, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&part[..end]).into_owned();
            let name = head.split('"').nth(1).expect("a name").to_owned();
            parts.push((name, part[end + 4..part.len() - 2].to_vec()));
        }
        rest = &rest[at + delimiter.len()..];
    }
    parts
}

#[track_caller]
fn part(answer: &Answer, name: &str) -> Vec<u8> {
    let mut found = parts(answer).into_iter();
    let found = found.find(|(part, _)| part == name);
    found
        .unwrap_or_else(|| panic!("no part {name}: {}", answer.text()))
        .1
}

#[test]
fn executions_protocols_and_restarts() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start_with("[executor]\nruntime_versions = ['v2', 'v4', 'v5']")?;
    node.import_runtime("node")?;
    c10_to_c14_basic_api(&node)?;
    c31_to_c34_created_executed_deleted(&node)?;
    c35_to_c45_executed_from_cold(&node)?;
    c54_older_clients_get_the_last_of_many_headers(&node)?;
    c57_to_c60_a_process_that_exits_is_started_again(&node)?;
    c65_the_old_protocol(&node)?;
    c66_to_c67_empty_documents(&node)?;
    c68_a_function_that_takes_too_long(&node)?;
    c69_to_c72_logs_up_to_their_limit(&node)?;
    c73_a_long_cold_start(&node)?;
    c74_to_c76_binary_bodies(&node)?;
    code_by_the_path_that_the_host_names(&node)?;
    protocol_v4_and_forms(&node)?;
    what_cannot_be_is_refused(&node)?;
    causes_are_told(&node)?;
    health_tells_usage(&node)
}

fn c31_to_c34_created_executed_deleted(node: &Node) -> Result<()> {
    let create = with(&cold(node, "node-mock")?, json!({"runtimeId": "test-exec"}));
    expect(&node.api("POST", "/v1/runtimes", &create)?, 201);
    let conflict = node.api("POST", "/v1/runtimes", &create)?;
    expect(&conflict, 409);
    assert_eq!(conflict.json()["type"], "runtime_conflict");
    let answer = execute_with(node, "test-exec", &json!({}), &[])?;
    expect(&answer, 200);
    assert_eq!(part(&answer, "statusCode"), b"200");
    let headers: Value = serde_json::from_slice(&part(&answer, "headers"))?;
    assert_eq!(headers["x-key"], "aValue");
    let warm = json!({"body": "test payload", "variables": {"customVariable": "mySecret"}});
    let warm = execute(node, "test-exec", &warm)?;
    expect(&warm, 200);
    let body: Value = serde_json::from_str(warm.json()["body"].as_str().unwrap_or_default())?;
    assert_eq!(body["bytes"], 12);
    assert_eq!(delete(node, "test-exec")?, 200);
    assert_eq!(delete(node, "test-exec")?, 404);
    Ok(())
}

fn c35_to_c45_executed_from_cold(node: &Node) -> Result<()> {
    const ID: &str = "test-exec-coldstart";
    let call = cold(node, "node-mock")?;
    expect(&execute(node, ID, &call)?, 200);
    for path in ["v1/users", "/v1/users"] {
        let answer = execute_with(node, ID, &with(&call, json!({ "path": path })), &[])?;
        assert_eq!(part(&answer, "statusCode"), b"200");
        let body = String::from_utf8(part(&answer, "body"))?;
        assert!(body.contains("/v1/users\""), "{body}");
    }
    for accept in [
        "application/json",
        "application/*",
        "text/plain, application/json",
    ] {
        let answer = execute_with(node, ID, &call, &[("accept", accept)])?;
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    for accept in ["application/xml", "text/plain", "*/*"] {
        let answer = execute_with(node, ID, &call, &[("accept", accept)])?;
        let kind = answer.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("multipart/form-data"), "{kind}");
    }
    let head = execute(node, ID, &with(&call, json!({"method": "HEAD"})))?;
    expect(&head, 200);
    assert_eq!(head.json()["body"], "");
    assert_eq!(delete(node, ID)?, 200);
    Ok(())
}

fn c54_older_clients_get_the_last_of_many_headers(node: &Node) -> Result<()> {
    let call = cold(node, "node-mock")?;
    let cookies = |format: &str| -> Result<Value> {
        let more = [
            ("accept", "application/json"),
            ("x-executor-response-format", format),
        ];
        let answer = execute_with(node, "cookies", &call, &more)?;
        Ok(answer.json()["headers"]["set-cookie"].clone())
    };
    assert_eq!(cookies("0.11.0")?, json!(["a=1", "b=2"]));
    assert_eq!(cookies("0.10.0")?, json!("b=2"));
    assert_eq!(delete(node, "cookies")?, 200);
    Ok(())
}

fn c57_to_c60_a_process_that_exits_is_started_again(node: &Node) -> Result<()> {
    const ID: &str = "test-exec-restart-policy";
    let call = cold(node, "node-exit")?;
    // Each start writes one line, which is kept across restarts.
    let start = format!("echo started; {}", crate::START);
    let call = with(
        &call,
        json!({"runtimeEntrypoint": start, "restartPolicy": "always"}),
    );
    let crashed = execute(node, ID, &call)?;
    expect(&crashed, 500);
    assert_eq!(
        crashed.json()["type"],
        "runtime_exited",
        "{}",
        crashed.text()
    );
    let mut again = call.clone();
    again
        .as_object_mut()
        .expect("an object")
        .remove("restartPolicy");
    expect(&execute(node, ID, &again)?, 500);
    let deadline = Instant::now() + Duration::from_secs(20);
    let started = || -> Result<usize> {
        let output = node.opr("logs", &[ID])?;
        Ok(output
            .lines()
            .filter(|line| line.ends_with(" out started"))
            .count())
    };
    while started()? < 3 {
        ensure!(Instant::now() < deadline, "{}", node.opr("logs", &[ID])?);
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(started()?, 3, "it runs, and is not started once more");
    assert_eq!(delete(node, ID)?, 200);
    Ok(())
}

fn c65_the_old_protocol(node: &Node) -> Result<()> {
    let start = "tar -xf /tmp/code.tar.gz -C /usr/code && exec node /usr/code/server.js";
    let call = cold(node, "node-v2")?;
    let call = with(
        &call,
        json!({"version": "v2", "runtimeEntrypoint": start, "body": "x"}),
    );
    let answer = execute(node, "v2", &call)?;
    expect(&answer, 200);
    let result = answer.json();
    assert_eq!(result["statusCode"], 200, "{result}");
    assert_eq!(result["body"], "{\"message\":\"Hello Open Runtimes 👋\"}");
    assert_eq!(
        (&result["logs"], &result["errors"]),
        (&json!(""), &json!(""))
    );
    assert_eq!(result["headers"], json!([]));
    assert_eq!(delete(node, "v2")?, 200);
    Ok(())
}

fn c66_to_c67_empty_documents(node: &Node) -> Result<()> {
    for (function, expected) in [("node-empty-object", "{}"), ("node-empty-array", "[]")] {
        let answer = execute(node, function, &cold(node, function)?)?;
        expect(&answer, 200);
        assert_eq!(answer.json()["body"], expected);
        assert_eq!(answer.json()["errors"], "");
        assert_eq!(delete(node, function)?, 200);
    }
    Ok(())
}

fn c68_a_function_that_takes_too_long(node: &Node) -> Result<()> {
    let call = with(&cold(node, "node-timeout")?, json!({"timeout": 4}));
    let answer = execute(node, "timeout", &call)?;
    expect(&answer, 200);
    let result = answer.json();
    assert_eq!(result["statusCode"], 500);
    let errors = result["errors"].as_str().unwrap_or_default();
    assert!(errors.contains("Execution timed out."), "{result}");
    assert_eq!(delete(node, "timeout")?, 200);
    Ok(())
}

fn c69_to_c72_logs_up_to_their_limit(node: &Node) -> Result<()> {
    let call = cold(node, "node-logs")?;
    let logs = |body: &str, logging: bool| -> Result<String> {
        let call = with(&call, json!({"body": body, "logging": logging}));
        let answer = execute(node, "logs", &call)?;
        expect(&answer, 200);
        let result = answer.json();
        assert_eq!(
            (&result["body"], &result["errors"]),
            (&json!("OK"), &json!(""))
        );
        Ok(result["logs"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(logs("1", true)?.len(), 1_048_576);
    assert_eq!(logs("5", true)?.len(), 5_242_880);
    let cut = logs("15", true)?;
    assert!((5_242_881..6_291_456).contains(&cut.len()) && cut.contains("truncated"));
    assert_eq!(logs("1", false)?, "");
    assert_eq!(delete(node, "logs")?, 200);
    Ok(())
}

fn c73_a_long_cold_start(node: &Node) -> Result<()> {
    let answer = execute(node, "long", &cold(node, "node-long-coldstart")?)?;
    expect(&answer, 200);
    let result = answer.json();
    assert_eq!(
        (&result["statusCode"], &result["body"]),
        (&json!(200), &json!("OK"))
    );
    assert!(result["duration"].as_f64() > Some(9.0), "{result}");
    assert_eq!(delete(node, "long")?, 200);
    Ok(())
}

fn c74_to_c76_binary_bodies(node: &Node) -> Result<()> {
    let call = cold(node, "node-binary-response")?;
    let answer = execute_with(node, "binary", &call, &[("accept", "multipart/form-data")])?;
    expect(&answer, 200);
    assert_eq!(part(&answer, "body"), [0, 10, 255]);
    let refused = execute(node, "binary", &call)?;
    expect(&refused, 400);
    let error = refused.json();
    assert_eq!(error["type"], "execution_bad_json");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("JSON response does not allow binaries"),
        "{message}"
    );
    assert_eq!(delete(node, "binary")?, 200);

    let call = cold(node, "node-binary-request")?;
    let answer = multipart(node, "echo", &call, &[0, 10, 255])?;
    expect(&answer, 200);
    assert_eq!(part(&answer, "body"), [0, 10, 255]);
    // A body of 20 MiB, both ways.
    let large: Vec<u8> = (0..20 << 20).map(|n: u32| n as u8).collect();
    let answer = multipart(
        node,
        "echo",
        &json!({"timeout": 45, "method": "POST"}),
        &large,
    )?;
    expect(&answer, 200);
    assert!(part(&answer, "body") == large);
    assert_eq!(delete(node, "echo")?, 200);
    Ok(())
}

/// Executes as Appwrite does: parts for all parameters, maps as JSON text with a content type of their own.
fn multipart(node: &Node, id: &str, call: &Value, body: &[u8]) -> Result<Answer> {
    let mut form = Vec::new();
    let mut add = |name: &str, kind: &str, value: &[u8]| {
        let head = format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n{kind}\r\n");
        form.extend_from_slice(head.as_bytes());
        form.extend_from_slice(value);
        form.extend_from_slice(b"\r\n");
    };
    for (name, value) in call.as_object().expect("an object") {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), ToOwned::to_owned);
        add(name, "", text.as_bytes());
    }
    add(
        "headers",
        "Content-Type: application/json\r\n",
        b"{\"content-type\":\"application/octet-stream\"}",
    );
    add("logging", "", b"1");
    add("body", "", body);
    form.extend_from_slice(b"--x--\r\n");
    let url = node.api_url(&format!("/v1/runtimes/{id}/executions"));
    let key = format!("Bearer {SECRET}");
    let head = [
        ("authorization", key.as_str()),
        ("content-type", "multipart/form-data; boundary=x"),
        ("accept", "multipart/form-data"),
    ];
    request("POST", &url, &head, &form)
}

fn code_by_the_path_that_the_host_names(node: &Node) -> Result<()> {
    let start =
        "echo \"at $OPEN_RUNTIMES_CODE_PATH\"; nohup helpers/start.sh \"bash helpers/server.sh\"";
    let call = with(
        &cold(node, "node-mock")?,
        json!({"runtimeEntrypoint": start}),
    );
    let tar = node.dir().join("plain.tar");
    let packed = std::fs::File::open(node.pack("node-mock")?)?;
    std::io::copy(
        &mut flate2::read::GzDecoder::new(packed),
        &mut std::fs::File::create(&tar)?,
    )?;
    for (source, path) in [
        (
            call["source"].as_str().unwrap_or_default().to_owned(),
            "/tmp/code.tar.gz",
        ),
        (tar.display().to_string(), "/tmp/code.tar"),
    ] {
        let answer = execute(node, "path", &with(&call, json!({ "source": source })))?;
        expect(&answer, 200);
        assert_eq!(answer.json()["statusCode"], 200);
        let output = node.opr("logs", &["path"])?;
        assert!(output.contains(&format!("at {path}")), "{output}");
        assert_eq!(delete(node, "path")?, 200);
    }
    Ok(())
}

fn c10_to_c14_basic_api(node: &Node) -> Result<()> {
    let get = |path: &str| node.api("GET", path, &json!({}));
    let unknown = get("/v1/unknown")?;
    expect(&unknown, 404);
    assert_eq!(unknown.json()["message"], "Not Found");
    assert_eq!(unknown.header("server"), Some("Executor"));
    assert_eq!(get("/v1/runtimes")?.json(), json!([]));
    let absent = [
        get("/v1/runtimes/id")?,
        node.api("DELETE", "/v1/runtimes/test", &json!({}))?,
    ];
    for answer in absent {
        expect(&answer, 404);
        assert_eq!(answer.json()["message"], "Runtime not found");
    }
    let url = node.api_url("/v1/runtimes");
    let anonymous = request("GET", &url, &[("authorization", "Bearer ")], &[])?;
    expect(&anonymous, 401);
    assert_eq!(anonymous.json()["message"], "Missing executor key");
    Ok(())
}

fn protocol_v4_and_forms(node: &Node) -> Result<()> {
    let call = with(&cold(node, "node-mock")?, json!({"version": "V4"}));
    let answer = execute(node, "v4", &call)?;
    expect(&answer, 200);
    let result = answer.json();
    assert_eq!(
        (&result["statusCode"], &result["logs"]),
        (&json!(200), &json!(""))
    );
    let url = node.api_url("/v1/runtimes/v4/execution");
    let key = format!("Bearer {SECRET}");
    let head = [
        ("authorization", key.as_str()),
        ("content-type", "application/x-www-form-urlencoded"),
        ("accept", "application/json"),
    ];
    let form = "path=%2Fv1%2Fusers%3Fa%3Db&headers[host]=example.org&timeout=45&logging=0&body=0";
    let answer = request("POST", &url, &head, form.as_bytes())?;
    expect(&answer, 200);
    let body = answer.json()["body"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let body: Value = serde_json::from_str(&body)?;
    assert_eq!(body["url"], "http://example.org/v1/users?a=b");
    assert_eq!(body["bytes"], 1, "a body of 0 reaches the function");
    assert_eq!(delete(node, "v4")?, 200);
    Ok(())
}

fn what_cannot_be_is_refused(node: &Node) -> Result<()> {
    let missing = execute(node, "none", &json!({}))?;
    expect(&missing, 404);
    assert_eq!(missing.json()["type"], "runtime_not_found");
    let invalid = node.api(
        "POST",
        "/v1/runtimes",
        &json!({"runtimeId": "a/b", "image": "a"}),
    )?;
    expect(&invalid, 400);
    assert_eq!(invalid.json()["type"], "execution_bad_request");
    Ok(())
}

fn causes_are_told(node: &Node) -> Result<()> {
    let base = cold(node, "node-mock")?;
    let check = |id: &str, more: Value, status: u16, kind: &str, part: &str| -> Result<()> {
        let answer = execute(node, id, &with(&base, more))?;
        expect(&answer, status);
        let error = answer.json();
        let message = error["message"].as_str().unwrap_or_default();
        assert!(error["type"] == kind && message.contains(part), "{error}");
        delete(node, id).map(drop)
    };
    let image = "127.0.0.1:9/none:1";
    check(
        "image",
        json!({"image": image}),
        400,
        "image_missing",
        image,
    )?;
    let source = "/storage/fake_path/code.tar.gz";
    check(
        "source",
        json!({"source": source}),
        400,
        "source_missing",
        source,
    )?;
    let crash = json!({"runtimeEntrypoint": "echo no such module; exit 7"});
    check(
        "crash",
        crash.clone(),
        400,
        "runtime_exited",
        "code 7, having written: no such module",
    )?;
    let command = json!({"image": "127.0.0.1:9/none:1"});
    check("again", command, 400, "image_missing", "127.0.0.1:9")?;
    let memory = json!({"memory": 30, "runtimeEntrypoint": "node -e 'a = []; for (;;) a.push(Buffer.alloc(1e6, 1))'"});
    check(
        "memory",
        memory,
        400,
        "runtime_out_of_memory",
        "memory limit",
    )?;
    let deaf = json!({"timeout": 2, "runtimeEntrypoint": "sleep 60"});
    check(
        "deaf",
        deaf,
        400,
        "runtime_not_listening",
        "does not listen on port 3000",
    )?;
    Ok(())
}

fn health_tells_usage(node: &Node) -> Result<()> {
    expect(&execute(node, "usage", &cold(node, "node-mock")?)?, 200);
    let open = request("GET", &node.api_url("/v1/health"), &[], &[])?;
    assert_eq!((open.status, open.text().as_str()), (200, "OK"));
    let health = node.api("GET", "/v1/health", &json!({}))?.json();
    assert_eq!(health["status"], "pass");
    let usage = &health["runtimes"]["usage"];
    assert_eq!(usage["status"], "pass");
    assert!(usage["usage"].as_f64() > Some(0.0), "{health}");
    assert_eq!(delete(node, "usage")?, 200);
    Ok(())
}
