//! Many executions at once.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::node::Node;

const RUNTIMES: usize = 100;
const EXECUTIONS: usize = 1000;
/// The daemon's own memory at its highest. MiB.
const MEMORY: u64 = 256;

const CODE: &str = "module.exports = async ({ req, res }) => {
    await new Promise((done) => setTimeout(done, 1000)); return res.text(req.bodyText); };";

#[test]
#[ignore = "takes minutes and 6 GiB"]
fn a_thousand_executions_at_once_in_a_hundred_runtimes() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let node = Node::start_large()?;
    node.import_runtime("node")?;
    let source = node.archive(CODE)?;
    let start = Barrier::new(EXECUTIONS);
    let body = "x".repeat(16 * 1024);
    let execute = |n: usize| -> Result<Duration> {
        let call = json!({
            "image": crate::IMAGE, "source": source, "entrypoint": "index.js", "body": body,
            "runtimeEntrypoint": crate::START, "timeout": 110, "method": "POST",
        });
        start.wait();
        let began = Instant::now();
        let path = format!("/v1/runtimes/load-{}/executions", n % RUNTIMES);
        let answer = node.api("POST", &path, &call)?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let result = answer.json();
        assert_eq!(result["statusCode"], 200, "{result}");
        assert_eq!(result["body"], body);
        Ok(began.elapsed())
    };
    for round in ["cold", "warm"] {
        let took = thread::scope(|scope| -> Result<Vec<Duration>> {
            let execute = &execute;
            let threads: Vec<_> = (0..EXECUTIONS)
                .map(|n| {
                    let small = thread::Builder::new().stack_size(512 * 1024);
                    small.spawn_scoped(scope, move || execute(n))
                })
                .collect::<Result<_, _>>()?;
            let ended = threads.into_iter();
            ended
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        })?;
        let longest = took.iter().max().context("there are some")?;
        println!("{round}: {EXECUTIONS} executions, the longest took {longest:.1?}");
    }
    assert_eq!(node.instances()?, RUNTIMES);
    let memory = node.peak_memory_mib()?;
    println!("the daemon's memory was {memory} MiB at its highest");
    assert!(memory < MEMORY, "{memory} MiB");
    Ok(())
}
