//! Builds that fail alone, and say why.

use std::collections::BTreeMap;

use super::*;

#[test]
fn builds_that_fail_say_why() -> Result<()> {
    run(cases![
        c19_a_missing_file_is_build_failed,
        c20_a_code_that_is_not_0_is_build_failed,
        c21_a_cache_key_is_a_plain_name,
        a_command_that_takes_too_long_is_killed,
        a_command_that_takes_too_much_memory_is_told_so,
        a_deleted_build_has_failed,
        a_hostile_artifact_is_refused,
    ])
}

fn c19_a_missing_file_is_build_failed(node: &Node) -> Result<()> {
    let (status, kind, message) = failed(
        node,
        &line("test-build-2", "cp doesnotexist.js doesnotexist2.js"),
    )?;
    ensure!(
        (status, kind.as_str()) == (400, "build_failed"),
        "{status} {kind} {message}"
    );
    ensure!(message.contains("doesnotexist.js"), "{message}");
    Ok(())
}

fn c20_a_code_that_is_not_0_is_build_failed(node: &Node) -> Result<()> {
    let (status, kind, message) = failed(node, &line("test-build-3", "exit 1"))?;
    ensure!(
        (status, kind.as_str()) == (400, "build_failed"),
        "{status} {kind} {message}"
    );
    ensure!(message == "Build command exited with code 1.", "{message}");
    Ok(())
}

fn c21_a_cache_key_is_a_plain_name(node: &Node) -> Result<()> {
    let mut order = line("test-build-4", "true");
    order["cacheKey"] = json!("..");
    create(node, &order, 400).map(drop)
}

fn a_command_that_takes_too_long_is_killed(node: &Node) -> Result<()> {
    let mut order = line("test-slow", "echo begun; sleep 1000");
    order["timeout"] = json!(1);
    let (status, kind, message) = failed(node, &order)?;
    ensure!(
        (status, kind.as_str()) == (400, "runtime_failed"),
        "{status} {kind} {message}"
    );
    ensure!(message.contains("timed out"), "{message}");
    Ok(())
}

fn a_command_that_takes_too_much_memory_is_told_so(node: &Node) -> Result<()> {
    let mut order = line(
        "test-hungry",
        "node -e 'const all = []; for (;;) all.push(Buffer.alloc(1e6, 1))'",
    );
    order["memory"] = json!(128);
    let (status, kind, message) = failed(node, &order)?;
    ensure!(
        (status, kind.as_str()) == (400, "build_failed"),
        "{status} {kind} {message}"
    );
    ensure!(message.contains("killed by the memory limit"), "{message}");
    Ok(())
}

fn a_deleted_build_has_failed(node: &Node) -> Result<()> {
    let id = "test-deleted";
    let (answer, deleted) = thread::scope(|scope| {
        let build = scope.spawn(|| failed(node, &line(id, "echo begun; sleep 1000")));
        // Its log says that it has begun.
        let url = node.api_url(&format!("/v1/runtimes/{id}/logs"));
        let key = format!("Bearer {SECRET}");
        let log = scope.spawn(move || request("GET", &url, &[("authorization", &key)], &[]));
        let is_pending = || node.api("GET", &format!("/v1/runtimes/{id}"), &json!({}));
        while !is_pending()
            .is_ok_and(|answer| answer.status == 200 && answer.json()["status"] == "pending")
        {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        let deleted = delete(node, id, 200);
        log.join().expect("no panic").expect("its log ends with it");
        (build.join().expect("no panic"), deleted)
    });
    deleted?;
    let (status, kind, message) = answer?;
    ensure!(
        (status, kind.as_str()) == (400, "build_failed"),
        "{status} {kind} {message}"
    );
    Ok(())
}

fn a_hostile_artifact_is_refused(node: &Node) -> Result<()> {
    let hostile = BTreeMap::from([
        ("link", "ln -s /etc/passwd /mnt/code/code.tar.gz"),
        ("fifo", "mkfifo /mnt/code/code.tar.gz"),
        ("folder", "mkdir /mnt/code/code.tar.gz"),
        ("none", "true"),
    ]);
    for (name, command) in hostile {
        let mut order = line(&format!("test-hostile-{name}"), command);
        order["destination"] = json!(format!("{}/hostile", destination(node)));
        let (status, kind, message) = failed(node, &order)?;
        ensure!(
            (status, kind.as_str()) == (500, "artifact_missing"),
            "{name}: {status} {kind} {message}"
        );
        ensure!(message.contains("code.tar.gz"), "{name}: {message}");
    }
    ensure!(!Path::new(&format!("{}/hostile", destination(node))).exists());
    Ok(())
}
