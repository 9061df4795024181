//! `scripts/bench cold|warm [--json] [-n N]`: this node beside its peers, in one run on one machine.
//! `scripts/bench runtimes [LANG...] [--json] [-n N]`: what each language costs on it.

#[path = "../tests/e2e/node.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
mod node;

#[path = "node/docker.rs"]
mod docker;
#[path = "node/load.rs"]
mod load;
#[path = "node/runtimes.rs"]
mod runtimes;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use node::{Node, request};

const HELLO: &str = "module.exports = async ({ res }) => res.text('hello');";
const IMAGE: &str = "openruntimes/node:v5-22";

/// One line of the result: what was measured, of us and of a peer.
struct Row {
    name: &'static str,
    unit: &'static str,
    ours: f64,
    peer: f64,
    n: usize,
}

impl Row {
    fn print(&self, as_json: bool) {
        let ratio = self.ours / self.peer;
        if as_json {
            let Self {
                name,
                unit,
                ours,
                peer,
                n,
            } = self;
            let row = serde_json::json!({ "name": name, "unit": unit, "ours": ours, "peer": peer, "ratio": ratio, "n": n });
            println!("{row}");
        } else {
            let Self {
                name,
                unit,
                ours,
                peer,
                n,
            } = self;
            println!("{name:<44} {ours:>10.3} {peer:>10.3} {unit:<6} {ratio:>7.3} {n:>6}");
        }
    }
}

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let as_json = args.iter().any(|arg| arg == "--json");
    let at = args.iter().position(|arg| arg == "-n");
    let n = match at {
        Some(at) => args.get(at + 1).context("-n takes a number")?.parse()?,
        None => 15,
    };
    ensure!(n > 0, "-n takes a number above 0");
    if args.first().is_some_and(|arg| arg == "runtimes") {
        let is_value = |index: usize| at.is_some_and(|at| index == at + 1);
        let words = args.iter().enumerate().skip(1);
        let words = words.filter(|(index, arg)| !arg.starts_with('-') && !is_value(*index));
        let languages: Vec<_> = words.map(|(_, arg)| arg.as_str()).collect();
        return runtimes::run(&languages, n, as_json);
    }
    if !as_json {
        println!(
            "{:<44} {:>10} {:>10} {:<6} {:>7} {:>6}",
            "", "ours", "peer", "unit", "ratio", "n"
        );
    }
    let rows = match args.first().map(String::as_str) {
        Some("cold") => cold(n)?,
        Some("warm") => warm(n)?,
        _ => anyhow::bail!("usage: scripts/bench cold|warm|runtimes [--json] [-n N]"),
    };
    for row in rows {
        row.print(as_json);
    }
    Ok(())
}

fn write_hello(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("index.js"), HELLO)?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// From a request to an absent function until its answer, against `docker run` until the first answer.
fn cold(n: usize) -> Result<Vec<Row>> {
    let node =
        Node::start_with("[executor]\ninactive_threshold_s = 1\nmaintenance_interval_s = 1")?;
    node.import_runtime("node")?;
    let source = node.dir().join("hello");
    write_hello(&source)?;
    node.deploy(&source, "hello", &["--runtime", "node-22"])?;
    let docker = docker::Docker::start(node.dir(), &node::runtime_archive("node")?, IMAGE)?;

    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..n {
        wait_until_absent(&node)?;
        let start = Instant::now();
        let answer = node.get("/hello/")?;
        ensure!(answer.status == 200, "{}", answer.text());
        ours.push(start.elapsed().as_secs_f64() * 1e3);
        peer.push(docker.first_answer(&source)?.as_secs_f64() * 1e3);
    }
    let name = "cold start of node until its answer, p50";
    Ok(vec![Row {
        name,
        unit: "ms",
        ours: median(ours),
        peer: median(peer),
        n,
    }])
}

fn wait_until_absent(node: &Node) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while node.opr("ps", &["--json"])?.trim() != "[]" {
        ensure!(Instant::now() < deadline, "the instance is not reaped");
        std::thread::sleep(Duration::from_millis(100));
    }
    // The pool of namespaces refills behind the last start; a start from rest is what is measured.
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

/// Latency and throughput through the gateway, against the instance called directly and through nginx.
fn warm(seconds: usize) -> Result<Vec<Row>> {
    let node = Node::start()?;
    node.import_runtime("node")?;
    let source = node.dir().join("hello");
    write_hello(&source)?;
    let mark = format!("BENCH_MARK={}", std::process::id());
    node.deploy(
        &source,
        "hello",
        &["--runtime", "node-22", "--cpus", "2", "--env", &mark],
    )?;
    ensure!(node.get("/hello/")?.status == 200, "{}", node.log());
    let instance = load::Instance::find(&mark)?;
    let nginx = load::Nginx::start(&instance, node.dir())?;
    let seconds = seconds.div_ceil(6).max(2);
    let direct = load::Target {
        instance: Some(&instance),
        url: "http://127.0.0.1:3000/".into(),
        headers: instance.headers(),
    };
    let nginx = load::Target {
        instance: Some(&instance),
        url: nginx.url(),
        headers: Vec::new(),
    };
    let gateway = load::Target {
        instance: None,
        url: node.url("/hello/"),
        headers: Vec::new(),
    };
    compare([&gateway, &direct, &nginx], seconds)
}

/// Loads each in turn and more than once, since the machine's speed drifts.
fn compare(targets: [&load::Target<'_>; 3], seconds: usize) -> Result<Vec<Row>> {
    let mut runs: [[Vec<load::Figures>; 2]; 3] = Default::default();
    for _ in 0..3 {
        for (at, connections) in [1, 16].into_iter().enumerate() {
            for (runs, target) in runs.iter_mut().zip(targets) {
                runs[at].push(target.load(connections, seconds)?);
            }
        }
    }
    let p50 = |who: usize| median(runs[who][0].iter().map(|run| run.p50_ms).collect());
    let rate = |who: usize| median(runs[who][1].iter().map(|run| run.per_second).collect());
    let n = runs[0][0].iter().map(|run| run.n).sum();
    let rows = [
        (
            "warm p50, 1 connection, against direct",
            "ms",
            p50(0),
            p50(1),
        ),
        (
            "warm p50 added, against nginx's",
            "ms",
            p50(0) - p50(1),
            p50(2) - p50(1),
        ),
        (
            "warm rate, 16 connections, against direct",
            "1/s",
            rate(0),
            rate(1),
        ),
        (
            "warm rate, 16 connections, against nginx",
            "1/s",
            rate(0),
            rate(2),
        ),
    ];
    let row = |(name, unit, ours, peer)| Row {
        name,
        unit,
        ours,
        peer,
        n,
    };
    Ok(rows.map(row).into())
}

/// The first answer of a URL that is polled each millisecond.
fn poll(url: &str, headers: &[(&str, &str)]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if request("GET", url, headers, &[]).is_ok_and(|answer| answer.status == 200) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{url} does not answer");
        std::thread::sleep(Duration::from_millis(1));
    }
}
