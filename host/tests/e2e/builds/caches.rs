//! What builds of one key share, and commands beside an instance.

use super::*;

#[test]
fn caches_and_commands_serve_their_instances() -> Result<()> {
    run(cases![
        c46_to_49_a_build_finds_the_cache_of_its_key,
        a_corrupt_cache_is_a_miss,
        c88_to_94_commands_run_in_an_instance,
        commands_need_the_key_and_see_the_instance,
    ])
}

fn c46_to_49_a_build_finds_the_cache_of_its_key(node: &Node) -> Result<()> {
    let build = |id: &str| {
        let more = json!({ "command": build_command("npm install && test -d node_modules"), "cacheKey": "fresh" });
        built(node, &order(node, id, "node", more)?)
    };
    let miss = output(&build("test-cache-miss")?);
    ensure!(
        miss.contains("Build cache miss.") && miss.contains("Build cache saved."),
        "{miss}"
    );
    let hit = build("test-cache-hit")?;
    ensure!(
        output(&hit).contains("Build cache hit."),
        "{}",
        output(&hit)
    );
    execute(node, "test-cache-exec", path(&hit)?, json!({})).map(drop)
}

fn a_corrupt_cache_is_a_miss(node: &Node) -> Result<()> {
    let cache = node
        .dir()
        .join("state/build-cache/corrupt/lz4-b1M/stores.sqfs");
    fs::create_dir_all(cache.parent().context("it has a folder")?)?;
    fs::write(&cache, "no file system")?;
    let more = json!({ "command": build_command("npm install"), "cacheKey": "corrupt" });
    let built = built(node, &order(node, "test-cache-corrupt", "node", more)?)?;
    let text = output(&built);
    ensure!(
        text.contains("failed to restore cache") && text.contains("Build cache saved."),
        "{text}"
    );
    ensure!(
        fs::read(&cache)?.starts_with(b"hsqs"),
        "the next build has no cache"
    );
    Ok(())
}

fn c88_to_94_commands_run_in_an_instance(node: &Node) -> Result<()> {
    let id = "test-commands";
    let start = json!({ "runtimeId": id, "image": crate::IMAGE, "entrypoint": "tail -f /dev/null", "remove": false });
    create(node, &start, 201)?;
    let answer = command(node, id, &json!({ "command": "echo \"Hello, World!\"" }))?;
    ensure!(
        (answer.status, answer.text()) == (200, r#"{"output":"Hello, World!\n"}"#.into()),
        "{}",
        answer.text()
    );
    for (line, message) in [
        (
            json!({ "command": "sleep 5 && echo \"Ok\"", "timeout": 1 }),
            "Operation timed out",
        ),
        (json!({ "command": "exit 1" }), "Failed to execute command"),
    ] {
        let answer = command(node, id, &line)?;
        let told = answer.json()["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        ensure!(
            answer.status == 500 && told.contains(message),
            "{}",
            answer.text()
        );
    }
    delete(node, id, 200)?;
    delete(node, id, 404)?;
    ensure!(command(node, id, &json!({ "command": "echo 123" }))?.status == 404);
    Ok(())
}

fn commands_need_the_key_and_see_the_instance(node: &Node) -> Result<()> {
    let id = "commands-2";
    let start =
        json!({ "runtimeId": id, "image": crate::IMAGE, "variables": { "GREETING": "hi" } });
    create(node, &start, 201)?;
    let url = node.api_url(&format!("/v1/runtimes/{id}/commands"));
    let headers = [("content-type", "application/json")];
    ensure!(request("POST", &url, &headers, br#"{"command":"id"}"#)?.status == 401);

    let line = "echo $GREETING; echo err >&2; pwd; [ -t 1 ] || echo no terminal; \
        grep -c ' /tmp/logging .* rw' /proc/self/mountinfo";
    let answer = command(node, id, &json!({ "command": line }))?;
    let expected = json!({ "output": "hi\n/usr/local/server\nno terminal\n1\nerr\n" });
    ensure!(answer.json() == expected, "{}", answer.text());

    // More than is kept: the rest is counted out, and the command is not held up.
    let answer = command(
        node,
        id,
        &json!({ "command": "head -c 3000000 /dev/zero | tr '\\0' x" }),
    )?;
    let output = answer.json()["output"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(
        output.len() < 1_000_100 && output.ends_with("truncated to 1.00MB."),
        "{}",
        output.len()
    );

    // What was stopped by its time is dead.
    command(
        node,
        id,
        &json!({ "command": "sleep 1234 & sleep 1234", "timeout": 1 }),
    )?;
    let alive = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done | grep -c '^sleep 1234' || true";
    let killed = (0..500).any(|_| {
        thread::sleep(std::time::Duration::from_millis(10));
        command(node, id, &json!({ "command": alive }))
            .is_ok_and(|answer| answer.json()["output"] == "0\n")
    });
    ensure!(killed, "a command goes on after its time");
    delete(node, id, 200)
}
