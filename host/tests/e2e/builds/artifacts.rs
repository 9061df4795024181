//! What builds leave, and that it runs.

use std::io::Write as _;

use super::*;

#[test]
fn builds_leave_artifacts_that_run() -> Result<()> {
    run(cases![
        c15_to_18_a_removed_build_leaves_nothing,
        c22_a_missing_source_is_an_error,
        c23_to_26_an_output_directory_is_packed_alone,
        c27_to_29_an_archive_may_be_uncompressed,
        c56_a_build_stays_where_nobody_removes_it,
        c77_a_build_and_an_instance_know_their_limits,
        c86_to_87_a_zip_is_a_source,
        archives_of_every_format_run,
        code_is_unpacked_once_and_each_instance_may_change_its_own,
        a_source_keeps_the_ending_that_tells_its_format,
        the_old_protocol_tells_one_piece,
    ])
}

fn c15_to_18_a_removed_build_leaves_nothing(node: &Node) -> Result<()> {
    let order = order(
        node,
        "test-build-1",
        "node",
        json!({ "command": build_command("npm install") }),
    )?;
    let built = built(node, &order)?;
    ensure!(Path::new(path(&built)?).is_file());
    ensure!(!Path::new("/tmp/executor-test-build-1").exists());
    for id in ["test-build-1", "test-build-selfdelete-1"] {
        let answer = node.api("GET", &format!("/v1/runtimes/{id}"), &json!({}))?;
        ensure!(answer.status == 404, "{id}: {}", answer.text());
    }
    Ok(())
}

fn c22_a_missing_source_is_an_error(node: &Node) -> Result<()> {
    let mut order = line("test-build-5", "true");
    order["source"] = json!("/storage/fake_path/code.tar.gz");
    create(node, &order, 500).map(drop)
}

fn c23_to_26_an_output_directory_is_packed_alone(node: &Node) -> Result<()> {
    let more = json!({ "command": build_command("bash build.sh"), "outputDirectory": "./dist" });
    let answer = create(
        node,
        &order(node, "test-build-static", "output-directory", more)?,
        201,
    )?;
    let built = answer.json();
    ensure!(built["path"].is_string() && built["output"].is_array() && built["size"].is_u64());
    ensure!(
        built["duration"].is_f64() && built["startTime"].is_f64(),
        "{}",
        answer.text()
    );
    let start = json!({
        "runtimeId": "test-exec-static", "image": crate::IMAGE, "source": path(&built)?,
        "runtimeEntrypoint": crate::START,
    });
    create(node, &start, 201)?;
    let answer = node.api(
        "POST",
        "/v1/runtimes/test-exec-static/executions",
        &json!({ "timeout": 45 }),
    )?;
    let result = answer.json();
    ensure!(result["body"] == "Website content", "{result}");
    delete(node, "test-exec-static", 200)
}

fn c27_to_29_an_archive_may_be_uncompressed(node: &Node) -> Result<()> {
    let id = "test-uncompressed";
    let more = json!({ "command": build_command("npm install"),
        "variables": { "OPEN_RUNTIMES_BUILD_COMPRESSION": "none" } });
    let built = built(node, &order(node, id, "node", more)?)?;
    let bytes = fs::read(path(&built)?)?;
    ensure!(bytes.get(257..262) == Some(b"ustar"), "it is no plain tar");
    let result = execute(node, "test-uncompressed-exec", path(&built)?, json!({}))?;
    let body: Value = serde_json::from_str(result["body"].as_str().unwrap_or_default())?;
    ensure!(body["message"] == "Hello Open Runtimes 👋", "{body}");
    Ok(())
}

fn c56_a_build_stays_where_nobody_removes_it(node: &Node) -> Result<()> {
    let id = "test-build-restart-policy";
    let mut order = order(
        node,
        id,
        "node-exit",
        json!({ "command": build_command("") }),
    )?;
    order
        .as_object_mut()
        .context("it is an object")?
        .remove("remove");
    ensure!(Path::new(path(&built(node, &order)?)?).is_file());
    let told = node.api("GET", &format!("/v1/runtimes/{id}"), &json!({}))?;
    ensure!(told.json()["initialised"] == 1, "{}", told.text());
    delete(node, id, 200)
}

fn c77_a_build_and_an_instance_know_their_limits(node: &Node) -> Result<()> {
    let limits =
        json!({ "cpus": 2.5, "memory": 1024, "command": build_command("npm i && npm run build") });
    let built = built(
        node,
        &order(node, "scenario-build-node-specs", "node-specs", limits)?,
    )?;
    let text = output(&built);
    ensure!(
        text.contains("cpus=2.5") && text.contains("memory=1024"),
        "{text}"
    );
    let limits = json!({ "cpus": 2.5, "memory": 1024, "variables": { "LOAD_MS": "10" } });
    let result = execute(node, "scenario-execute-node-specs", path(&built)?, limits)?;
    ensure!(
        result["body"] == r#"{"cpus":"2.5","memory":"1024"}"#,
        "{result}"
    );
    ensure!(result["logs"] == "" && result["errors"] == "", "{result}");
    Ok(())
}

fn c86_to_87_a_zip_is_a_source(node: &Node) -> Result<()> {
    let zip = node.dir().join("storage/code.zip");
    fs::create_dir_all(zip.parent().context("it has a folder")?)?;
    let mut archive = zip::ZipWriter::new(fs::File::create(&zip)?);
    archive.start_file("index.js", zip::write::SimpleFileOptions::default())?;
    archive.write_all(b"module.exports = async ({ res }) => res.text('zipped');")?;
    archive.finish()?;
    let more = json!({
        "command": "unzip /tmp/code.tar.gz -d /mnt/code && bash helpers/build.sh \"true\"",
        "source": zip.display().to_string(),
    });
    let built = built(node, &order(node, "test-zip", "node", more)?)?;
    let result = execute(node, "test-zip-exec", path(&built)?, json!({}))?;
    ensure!(result["body"] == "zipped", "{result}");
    Ok(())
}

/// What an image packs as it likes, the host stores, brings and names; the image unpacks it.
fn archives_of_every_format_run(node: &Node) -> Result<()> {
    let formats: [(&str, &[u8], &str); 3] = [
        ("gzip", &[0x1f, 0x8b], ".gz"),
        ("zstd", &[0x28, 0xb5, 0x2f, 0xfd], ".gz"),
        ("squashfs", b"hsqs", ".sqfs"),
    ];
    for (format, magic, ending) in formats {
        let more = json!({ "command": build_command("true"),
            "variables": { "OPEN_RUNTIMES_BUILD_COMPRESSION": format } });
        let id = format!("test-{format}");
        let built = built(node, &order(node, &id, "node-empty-object", more)?)?;
        let artifact = path(&built)?;
        let is_of_format = artifact.ends_with(ending) && fs::read(artifact)?.starts_with(magic);
        ensure!(is_of_format, "{format}: {artifact}");
        let start = "nohup helpers/start.sh \"bash helpers/server.sh\"";
        let result = execute(node, &id, artifact, json!({ "runtimeEntrypoint": start }))?;
        ensure!(result["body"] == "{}", "{format}: {result}");
    }
    Ok(())
}

fn a_source_keeps_the_ending_that_tells_its_format(node: &Node) -> Result<()> {
    for ending in ["tar", "tar.gz", "zip", "sqfs", "erofs"] {
        let source = node.dir().join(format!("storage/content.{ending}"));
        fs::create_dir_all(source.parent().context("it has a folder")?)?;
        fs::write(&source, ending)?;
        let mut order = line(
            &format!("test-ending-{ending}"),
            "echo $OPEN_RUNTIMES_CODE_PATH; cat $OPEN_RUNTIMES_CODE_PATH",
        );
        order["source"] = json!(source);
        let seen = match ending {
            "zip" => "tar.gz",
            other => other,
        };
        let text = output(&built(node, &order)?);
        ensure!(text == format!("/tmp/code.{seen}\r\n{ending}"), "{text:?}");
    }
    Ok(())
}

fn the_old_protocol_tells_one_piece(node: &Node) -> Result<()> {
    let mut order = line(
        "test-v2",
        "pwd; echo err >&2; echo x > /usr/code/code.tar.gz",
    );
    order["version"] = json!("v2");
    order["destination"] = json!(destination(node));
    let built = built(node, &order)?;
    ensure!(
        built["output"].as_array().map(Vec::len) == Some(1),
        "{built}"
    );
    let text = output(&built);
    ensure!(
        text.contains("/usr/code\n") && text.contains("err\n") && !text.contains('\r'),
        "{text:?}"
    );
    ensure!(
        built["size"] == 2 && fs::read(path(&built)?)? == b"x\n",
        "{built}"
    );
    Ok(())
}

fn code_is_unpacked_once_and_each_instance_may_change_its_own(node: &Node) -> Result<()> {
    let more = json!({ "command": build_command("true") });
    let built = built(node, &order(node, "unpacked-build", "node-mock", more)?)?;
    let ids = ["unpacked-1", "unpacked-2"];
    for id in ids {
        let order = json!({
            "runtimeId": id, "image": crate::IMAGE, "entrypoint": "index.js", "source": path(&built)?,
            "runtimeEntrypoint": crate::START,
        });
        create(node, &order, 201)?;
        let executions = format!("/v1/runtimes/{id}/executions");
        let answer = node.api("POST", &executions, &json!({ "timeout": 45 }))?;
        ensure!(answer.json()["statusCode"] == 200, "{}", answer.text());
        let script = "cd /usr/local/server/src/function && grep -c ' /usr/local/server/src/function overlay ' /proc/mounts \
                      && test ! -e new && echo changed > index.js && echo new > new && rm ca-certificates.crt && cat index.js";
        let commands = format!("/v1/runtimes/{id}/commands");
        let answer = node.api("POST", &commands, &json!({ "command": script }))?;
        let output = answer.json()["output"].as_str().map(str::to_owned);
        ensure!(
            output.as_deref().map(str::trim) == Some("1\nchanged"),
            "{}",
            answer.text()
        );
    }
    // Its log ends with it.
    let log = thread::scope(|scope| {
        let log = scope.spawn(|| logs(node, ids[0]));
        ids.iter().try_for_each(|id| delete(node, id, 200))?;
        log.join().expect("no panic")
    })?;
    ensure!(log.text().contains("already extracted"), "{}", log.text());
    Ok(())
}
