//! Images of a whole catalogue, built in one go.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::node::Node;

const CATALOG: &str = r#"
[[runtime]]
name = "first"
versions = ["2", "1"]
image = "localhost/first:{version}"
protocol = "v5"
entrypoint = "index"
start = ["/index"]
[[runtime]]
name = "broken"
versions = ["1"]
image = "localhost/broken:{version}"
protocol = "v5"
entrypoint = "index"
start = ["/index"]
[[runtime]]
name = "second"
versions = ["1"]
image = "localhost/second:{version}"
protocol = "v5"
entrypoint = "index"
start = ["/index"]
"#;

/// One runtime of the base that all of ours have, with a step that runs; one of a file alone; one that cannot be built.
fn write_runtimes(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("catalog.toml"), CATALOG)?;
    for (name, base, steps) in [
        (
            "first",
            "docker.io/library/debian:trixie-slim",
            "COPY first/src /\nRUN echo $VERSION > /version",
        ),
        ("broken", "scratch", "COPY absent /"),
        ("second", "scratch", "COPY second/src /"),
    ] {
        let runtime = folder.join(name);
        fs::create_dir_all(runtime.join("src"))?;
        fs::write(runtime.join("src/index"), name)?;
        let dockerfile = format!("FROM {base}\nARG VERSION\nENV VERSION=$VERSION\n{steps}\n");
        fs::write(runtime.join("Dockerfile"), dockerfile)?;
    }
    Ok(())
}

/// Builds all that has changed: what became of each by its name, and the digests.
fn build_all(node: &Node, folder: &Path) -> Result<(Value, Vec<Value>)> {
    let output = node
        .command("images")
        .args(["build", "--all", "--json", "--jobs", "2"])
        .arg(folder)
        .output()?;
    let told = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1), "{}: {told}", output.status);
    ensure!(
        told.contains("1 of 4 images were not built: broken-1"),
        "{told}"
    );
    let lines = String::from_utf8(output.stdout)?;
    let lines: Result<Vec<Value>, _> = lines.lines().map(serde_json::from_str).collect();
    let lines = lines?;
    let pairs = lines.iter().map(|line| {
        let name = line["runtime"].as_str().context("a name")?;
        Ok((name.to_owned(), line["state"].clone()))
    });
    let states = pairs.collect::<Result<serde_json::Map<_, _>>>()?;
    let digests = lines.iter().map(|line| line["digest"].clone()).collect();
    Ok((states.into(), digests))
}

#[test]
fn a_catalogue_is_built_but_for_what_is_there_and_goes_on_past_failures() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    let folder = node.dir().join("runtimes");
    write_runtimes(&folder)?;
    let (built, digests) = build_all(&node, &folder)?;
    let expected = json!({
        "first-2": "built", "first-1": "built", "broken-1": "failed", "second-1": "built",
    });
    ensure!(built == expected, "{built}");
    ensure!(
        digests.iter().filter(|digest| digest.is_string()).count() == 3,
        "{digests:?}"
    );
    let image = node.opr("images", &["--json", "inspect", "localhost/first:1"])?;
    let config = &serde_json::from_str::<Value>(&image)?["config"];
    let env = config["env"].as_array().context("an environment")?;
    ensure!(env.contains(&json!("VERSION=1")), "{config}");

    let (again, _) = build_all(&node, &folder)?;
    let expected = json!({
        "first-2": "unchanged", "first-1": "unchanged", "broken-1": "failed", "second-1": "unchanged",
    });
    ensure!(again == expected, "{again}");

    fs::write(folder.join("second/src/index"), "changed")?;
    node.opr("images", &["rm", "localhost/first:2"])?;
    let (changed, _) = build_all(&node, &folder)?;
    let expected = json!({
        "first-2": "built", "first-1": "unchanged", "broken-1": "failed", "second-1": "built",
    });
    ensure!(changed == expected, "{changed}");

    fs::write(
        folder.join("broken/Dockerfile"),
        "FROM scratch\nCOPY broken/src /\n",
    )?;
    let folder = folder.display().to_string();
    let table = node.opr("images", &["build", "--all", &folder])?;
    let line = |name: &str| table.lines().find(|line| line.starts_with(name));
    let says = |name, state| line(name).is_some_and(|line| line.contains(state));
    ensure!(
        says("broken-1", " built ") && says("second-1", " unchanged "),
        "{table}"
    );
    ensure!(table.lines().count() == 5, "{table}");
    Ok(())
}
