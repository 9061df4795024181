//! Many lives of many instances, and what is left of them.

use anyhow::Result;
use serde_json::json;

use crate::node::Node;

/// Rounds of create, execute, delete; a release is tested with 2,000.
fn rounds() -> usize {
    let rounds = std::env::var("OPR_TEST_ROUNDS").ok();
    rounds.map_or(20, |text| {
        text.parse().expect("OPR_TEST_ROUNDS is a number")
    })
}

#[test]
fn many_instances_leave_nothing_behind() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start()?;
    node.import_runtime("node")?;
    let source = node.archive("module.exports = async ({ res }) => res.text('ok');")?;
    let round = |n: usize| -> Result<()> {
        let path = format!("/v1/runtimes/round-{n}");
        let execution = json!({
            "image": crate::IMAGE, "source": source, "entrypoint": "index.js",
            "runtimeEntrypoint": crate::START, "timeout": 45,
        });
        let answer = node.api("POST", &format!("{path}/executions"), &execution)?;
        assert_eq!(answer.status, 200, "{}\n{}", answer.text(), node.log());
        assert_eq!(answer.json()["body"], "ok");
        let command = json!({ "command": "echo ok" });
        let answer = node.api("POST", &format!("{path}/commands"), &command)?;
        assert_eq!(answer.json()["output"], "ok\n");
        assert_eq!(node.api("DELETE", &path, &json!({}))?.status, 200);
        for (command, status) in [("echo ok >/mnt/code/code.tar.gz", 201), ("exit 1", 400)] {
            let build = json!({
                "runtimeId": format!("build-{n}"), "image": crate::IMAGE, "command": command,
                "cacheKey": "round", "destination": node.dir().join("builds"), "remove": true,
            });
            let answer = node.api("POST", "/v1/runtimes", &build)?;
            assert_eq!(answer.status, status, "{}\n{}", answer.text(), node.log());
        }
        Ok(())
    };
    // The first rounds fill pools and caches.
    for n in 0..5 {
        round(n)?;
    }
    let before = node.settled()?;
    for n in 0..rounds() {
        round(n)?;
    }
    let after = node.settled()?;
    println!("after {} rounds: {after:?}", rounds());
    assert_eq!(before, after, "{}", node.log());
    Ok(())
}
