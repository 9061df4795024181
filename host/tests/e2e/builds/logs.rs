//! What builds write, in their answer and as it happens.

use super::*;

#[test]
fn logs_are_streamed_as_they_are_written() -> Result<()> {
    run(cases![
        c01_to_07_a_log_is_streamed_from_before_its_build,
        c08_the_log_of_a_failed_build_ends_with_it,
        c09_the_log_of_a_build_that_stays_ends_with_its_creation,
        c61_to_64_logs_are_cut_at_their_limit,
        many_builds_have_each_their_own_log,
        the_log_of_a_server_is_what_it_prints,
    ])
}

type Record = (String, String);

/// Follows the log of an instance from before `build` makes it.
fn logged<T: Send>(
    node: &Node,
    id: &str,
    build: impl FnOnce() -> Result<T> + Send,
) -> Result<(Vec<Record>, T)> {
    thread::scope(|scope| {
        let log = scope.spawn(|| logs(node, id));
        let built = build();
        let log = log.join().expect("no panic")?;
        Ok((records(&log)?, built?))
    })
}

/// What a client reads in a stream, as it was written.
fn text(records: &[Record]) -> String {
    let contents = records
        .iter()
        .map(|(_, content)| content.replace("\\n", "\n"));
    contents.collect()
}

fn c01_to_07_a_log_is_streamed_from_before_its_build(node: &Node) -> Result<()> {
    let id = "test-log-stream-1";
    let command = json!({ "command": build_command("npm install && npm run build") });
    let order = order(node, id, "node", command)?;
    let (records, built) = logged(node, id, || built(node, &order))?;
    let elements = built["output"].as_array().context("there is output")?;
    let told = elements.iter().map(|element| {
        let text = |name: &str| element[name].as_str().unwrap_or_default().to_owned();
        (text("timestamp"), text("content"))
    });
    check_steps(&told.collect::<Vec<_>>()).context("output")?;
    check_steps(&records).context("stream")?;
    ensure!(output(&built).contains("Build finished"));
    // The stream ends as the build does, and has all of it.
    ensure!(
        text(&records) == output(&built),
        "the stream is another text"
    );
    Ok(())
}

fn check_steps(parts: &[Record]) -> Result<()> {
    let all = text(parts);
    ensure!(all.contains("Environment preparation started"), "{all}");
    for n in 1..=10 {
        ensure!(all.contains(&format!("Step: {n}")), "no step {n}: {all}");
    }
    ensure!(parts.len() > 5, "{} parts", parts.len());
    let is_full = |(time, content): &Record| time.len() == 29 && !content.is_empty();
    ensure!(parts.iter().all(is_full), "{parts:?}");
    let is_ordered = parts.windows(2).all(|two| two[0].0 <= two[1].0);
    ensure!(is_ordered, "times go back: {parts:?}");
    for coloured in ["[33mOrange message", "[31mRed message"] {
        // npm prints the command first, which has no escape yet; it may come in the same part.
        let is_it = |line: &str| line.contains(coloured) && line.contains("[0m");
        ensure!(
            all.lines()
                .any(|line| is_it(line) && !line.contains("echo -e")),
            "no {coloured}: {all}"
        );
    }
    Ok(())
}

fn c08_the_log_of_a_failed_build_ends_with_it(node: &Node) -> Result<()> {
    let id = "test-log-stream-fail-cache";
    let mut order = line(id, "echo before-cache-failure && exit 1");
    order["cacheKey"] = json!(id);
    let (records, failed) = logged(node, id, || failed(node, &order))?;
    let (status, _, message) = failed;
    ensure!(status == 400, "{message}");
    ensure!(message.contains("before-cache-failure"), "{message}");
    ensure!(text(&records) == "before-cache-failure\r\n", "{records:?}");
    Ok(())
}

fn c09_the_log_of_a_build_that_stays_ends_with_its_creation(node: &Node) -> Result<()> {
    let id = "test-log-stream-persistent";
    let command = "echo one; sleep 0.3; echo two";
    let more = json!({ "command": command, "remove": false, "destination": "" });
    let order = order(node, id, "node", more)?;
    let (records_then, _) = logged(node, id, || built(node, &order))?;
    // Whoever comes later still gets all of it.
    let late = records(&logs(node, id)?)?;
    ensure!(late == records_then && late.len() == 2, "{late:?}");
    let told = node.api("GET", &format!("/v1/runtimes/{id}"), &json!({}))?;
    ensure!(told.json()["initialised"] == 1, "{}", told.text());
    delete(node, id, 200)
}

fn many_builds_have_each_their_own_log(node: &Node) -> Result<()> {
    let build = |n: usize| -> Result<()> {
        let id = format!("many-{n}");
        let command = format!("for i in 1 2 3; do echo build {n} line $i; sleep 0.1; done");
        let expected: String = (1..=3).map(|i| format!("build {n} line {i}\r\n")).collect();
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| logs(node, &id))).collect();
            ensure!(output(&built(node, &line(&id, &command))?) == expected);
            for reader in readers {
                let records = records(&reader.join().expect("no panic")?)?;
                ensure!(text(&records) == expected, "{records:?}");
            }
            Ok(())
        })
    };
    thread::scope(|scope| {
        let builds: Vec<_> = (0..6).map(|n| scope.spawn(move || build(n))).collect();
        let mut outcomes = builds
            .into_iter()
            .map(|build| build.join().expect("no panic"));
        outcomes.try_for_each(|outcome| outcome)
    })
}

fn the_log_of_a_server_is_what_it_prints(node: &Node) -> Result<()> {
    let id = "test-server-log";
    let line = "echo began; echo failed >&2; sleep 0.2; echo more; exec sleep 1000";
    let start = json!({ "runtimeId": id, "image": crate::IMAGE, "runtimeEntrypoint": line });
    let log = thread::scope(|scope| {
        let log = scope.spawn(|| logs(node, id));
        create(node, &start, 201)?;
        let wait =
            json!({ "command": "until [ \"$(cat /proc/1/comm)\" = sleep ]; do sleep 0.01; done" });
        ensure!(command(node, id, &wait)?.status == 200);
        delete(node, id, 200)?;
        records(&log.join().expect("no panic")?)
    })?;
    let text = text(&log);
    for said in ["began\n", "failed\n", "more\n"] {
        ensure!(text.contains(said), "{text}");
    }
    Ok(())
}

fn c61_to_64_logs_are_cut_at_their_limit(node: &Node) -> Result<()> {
    let build = |n: u32, script: &str| {
        let more = json!({ "command": build_command(&format!("bash {script}")) });
        order(node, &format!("test-logs-{n}"), "build-logs", more)
    };
    let all = 7 * 131_072;
    let (status, _, message) = failed(node, &build(61, "logs_failure.sh")?)?;
    ensure!(status == 400 && message.len() >= all, "{}", message.len());
    ensure!(message.contains("First log") && message.contains("Last log"));

    let text = output(&built(node, &build(62, "logs_success.sh")?)?);
    ensure!(text.len() >= all && text.contains("First log") && text.contains("Last log"));

    let (status, _, message) = failed(node, &build(63, "logs_failure_large.sh")?)?;
    ensure!(
        status == 400 && message.len() >= 1_000_000,
        "{}",
        message.len()
    );
    ensure!(message.contains("First log") && !message.contains("Last log"));

    let text = output(&built(node, &build(64, "logs_success_large.sh")?)?);
    ensure!(text.len() >= 1_000_000 && text.contains("First log") && !text.contains("Last log"));
    ensure!(text.ends_with("Logs truncated due to size exceeding 1.00MB."));
    Ok(())
}
