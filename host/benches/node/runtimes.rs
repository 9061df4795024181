//! What each language of the catalogue costs on a node: its example is deployed, started from nothing, and loaded.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use opr_host::function::{Catalog, Runtime};

use crate::{
    load, median,
    node::{Node, image::archive_path},
    wait_until_absent,
};

/// Long enough for a cold start to be over, so that what is looked at afterwards is at rest.
const REST: Duration = Duration::from_millis(500);
const LOAD_S: usize = 3;

/// One line of the result.
struct Row {
    runtime: String,
    /// Compressed layers and config.
    image_bytes: u64,
    unpacked: Files,
    /// From the folder to the function that is served; the median of up to three.
    build_ms: f64,
    /// From the order to start the main process until its port accepts. The order's own answer may come after that.
    boot_ms: f64,
    /// From the request to an absent function until its answer.
    first_answer_ms: f64,
    /// Through the gateway, one connection.
    warm_p50_ms: f64,
    /// Of all its processes after the load; what several share counts once (`Pss`).
    memory_bytes: u64,
    n: usize,
}

/// Regular files, and how long they are together.
#[derive(Clone, Copy, Default)]
struct Files {
    n: u64,
    bytes: u64,
}

impl Row {
    fn print(&self, as_json: bool) {
        let Self {
            runtime,
            image_bytes,
            unpacked: Files { n: n_files, bytes },
            build_ms,
            boot_ms,
            first_answer_ms,
            warm_p50_ms,
            memory_bytes,
            n,
        } = self;
        if as_json {
            let row = serde_json::json!({
                "name": runtime, "image_bytes": image_bytes, "unpacked_bytes": bytes, "n_files": n_files,
                "build_ms": build_ms, "boot_ms": boot_ms, "first_answer_ms": first_answer_ms,
                "warm_p50_ms": warm_p50_ms, "memory_bytes": memory_bytes, "n": n,
            });
            println!("{row}");
            return;
        }
        let (image, unpacked) = (megabytes(*image_bytes), megabytes(*bytes));
        let memory = megabytes(*memory_bytes);
        println!(
            "{runtime:<14} {image:>8.1} {unpacked:>8.1} {n_files:>7} {build_ms:>8.0} {boot_ms:>8.1} \
             {first_answer_ms:>8.1} {warm_p50_ms:>8.3} {memory:>9.1} {n:>4}"
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with one decimal")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Measures the first version of each of `languages`; where none is named, of all whose images have been built. Goes on
/// past one that fails.
pub(crate) fn run(languages: &[&str], n: usize, as_json: bool) -> Result<()> {
    let catalog = Catalog::load(None)?;
    let families: BTreeSet<_> = catalog.list().iter().map(|r| r.family.as_str()).collect();
    if let Some(unknown) = languages.iter().find(|name| !families.contains(*name)) {
        bail!("there is no language {unknown}");
    }
    let (mut chosen, mut absent) = (Vec::new(), Vec::new());
    for family in families {
        if languages.contains(&family) || languages.is_empty() && archive_path(family)?.exists() {
            chosen.push(family);
        } else if languages.is_empty() {
            absent.push(family);
        }
    }
    if !absent.is_empty() {
        eprintln!("not built yet, unless named: {}", absent.join(", "));
    }
    if !as_json {
        println!(
            "{:<14} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>8} {:>9} {:>4}",
            "",
            "image MB",
            "unpacked",
            "files",
            "build ms",
            "boot ms",
            "first ms",
            "warm ms",
            "memory MB",
            "n"
        );
    }
    let mut failed = Vec::new();
    for family in chosen {
        match measure(&*catalog.find(family)?, n) {
            Ok(row) => row.print(as_json),
            Err(error) => {
                eprintln!("{family}: {error:#}");
                failed.push(family);
            }
        }
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

fn measure(runtime: &Runtime, n: usize) -> Result<Row> {
    let node =
        Node::start_with("[executor]\ninactive_threshold_s = 1\nmaintenance_interval_s = 1")?;
    node.import_runtime(&runtime.family)?;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtimes");
    let example = example.join(&runtime.family).join("example");
    let args = ["--runtime", &runtime.name];
    let mut builds = Vec::new();
    for _ in 0..n.min(3) {
        let start = Instant::now();
        node.deploy(&example, "example", &args)?;
        builds.push(milliseconds(start.elapsed()));
    }
    let (mut boots, mut first) = (Vec::new(), Vec::new());
    for _ in 0..n {
        wait_until_absent(&node)?;
        let start = Instant::now();
        let answer = node.get("/example/")?;
        first.push(milliseconds(start.elapsed()));
        ensure!(answer.status == 200, "{}\n{}", answer.text(), node.log());
        let phases = answer.header("server-timing").unwrap_or_default();
        let boot = phase(phases, "start").zip(phase(phases, "boot"));
        let (start, boot) = boot.with_context(|| phases.to_owned())?;
        boots.push(start + boot);
    }
    let target = load::Target {
        instance: None,
        url: node.url("/example/"),
        headers: Vec::new(),
    };
    let warm = target.load(1, LOAD_S)?;
    std::thread::sleep(REST);
    let instance = processes(&node)?;
    Ok(Row {
        runtime: runtime.name.clone(),
        image_bytes: image_bytes(&node, runtime)?,
        build_ms: median(builds),
        boot_ms: median(boots),
        first_answer_ms: median(first),
        warm_p50_ms: warm.p50_ms,
        memory_bytes: memory_bytes(&instance)?,
        unpacked: files(&instance)?,
        n,
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The duration of `name` in `cold;desc="start", boot;dur=1.250`.
fn phase(phases: &str, name: &str) -> Option<f64> {
    let entries = phases
        .split(", ")
        .filter_map(|entry| entry.split_once(";dur="));
    let mut entries = entries.filter(|(key, _)| *key == name);
    entries.next()?.1.parse().ok()
}

fn image_bytes(node: &Node, runtime: &Runtime) -> Result<u64> {
    let image = node.opr("images", &["--json", "inspect", &runtime.image.to_string()])?;
    let image: serde_json::Value = serde_json::from_str(&image)?;
    image["size_bytes"].as_u64().context("a size")
}

/// What `/proc` has of the processes in the node's only sandbox.
fn processes(node: &Node) -> Result<Vec<PathBuf>> {
    let namespace = node.namespace();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if groups.split(['/', '\n']).any(|name| name == namespace) {
            found.push(entry.path());
        }
    }
    ensure!(!found.is_empty(), "no process is in {namespace}");
    Ok(found)
}

fn memory_bytes(processes: &[PathBuf]) -> Result<u64> {
    let mut kib = 0;
    for process in processes {
        let sums = fs::read_to_string(process.join("smaps_rollup"))?;
        let line = sums.lines().find_map(|line| line.strip_prefix("Pss:"));
        let value = line.context("a sum")?.trim().trim_end_matches(" kB");
        kib += value.parse::<u64>()?;
    }
    Ok(kib * 1024)
}

/// The image as the processes see it, without what is mounted into it.
fn files(processes: &[PathBuf]) -> Result<Files> {
    let process = processes.first().context("a process")?;
    // Held open: the instance may be reaped meanwhile.
    let root = File::open(process.join("root"))?;
    let mut seen = BTreeSet::new();
    let mut files = Files::default();
    let mut folders = vec![PathBuf::from(format!(
        "/proc/self/fd/{}/",
        root.as_raw_fd()
    ))];
    let device = root.metadata()?.dev();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                // What `read_dir` knows of a mount point is what lies below it.
                let path = entry.path();
                if fs::metadata(&path)?.dev() == device {
                    folders.push(path);
                }
            } else if metadata.is_file() && seen.insert((metadata.dev(), metadata.ino())) {
                files.n += 1;
                files.bytes += metadata.len();
            }
        }
    }
    Ok(files)
}
