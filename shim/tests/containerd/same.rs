//! One case under both runtimes, and what is compared of it.

use std::{fmt::Write, fs, path::Path, sync::Arc};

use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinSet};
use tonic::{Code, Status};

use crate::{
    container::{Container, Run},
    exceptions::EXCEPTIONS,
    node::{Node, Runtime, is_able},
    rootfs::Kind,
};

/// Cases that run side by side: there is more waiting than work in one.
const AT_ONCE: usize = 3;

/// A container that runs to its end: a change to the default spec, and a script that tells what is seen inside.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    name: &'static str,
    script: &'static str,
    change: fn(&mut Value),
    fill: fn(&Path),
    kind: Kind,
    expected: Expected,
    input: Option<&'static str>,
}

/// What the peer does, so that a case cannot agree by failing in both.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Exit(u32),
    Shows(&'static str),
    Refused,
    /// The machine decides.
    Any,
}

pub(crate) const fn case(name: &'static str, script: &'static str, change: fn(&mut Value)) -> Case {
    Case {
        name,
        script,
        change,
        fill: |_| {},
        kind: Kind::Overlay,
        expected: Expected::Exit(0),
        input: None,
    }
}

/// A spec that no runtime takes.
pub(crate) const fn refused(name: &'static str, change: fn(&mut Value)) -> Case {
    let mut case = case(name, "", change);
    case.expected = Expected::Refused;
    case
}

impl Case {
    /// The script ends with this.
    pub(crate) const fn exits(mut self, status: u32) -> Self {
        self.expected = Expected::Exit(status);
        self
    }

    /// The script succeeds and its output has this in it.
    pub(crate) const fn shows(mut self, text: &'static str) -> Self {
        self.expected = Expected::Shows(text);
        self
    }

    /// The peer refuses it.
    pub(crate) const fn refuses(mut self) -> Self {
        self.expected = Expected::Refused;
        self
    }

    /// The machine decides how it ends, for both alike.
    pub(crate) const fn either(mut self) -> Self {
        self.expected = Expected::Any;
        self
    }

    /// Changes the root file system before it is mounted.
    pub(crate) const fn fill(mut self, fill: fn(&Path)) -> Self {
        self.fill = fill;
        self
    }

    pub(crate) const fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// What the script reads.
    pub(crate) const fn input(mut self, text: &'static str) -> Self {
        self.input = Some(text);
        self
    }

    fn container<'n>(&self, node: &'n Node, runtime: Runtime) -> Container<'n> {
        let mut container = node
            .container(runtime, &slug(self.name))
            .kind(self.kind)
            .fill(self.fill)
            .sh(self.script)
            .spec(self.change);
        if let Some(text) = self.input {
            container = container.input(text);
        }
        container
    }

    /// What is wrong, where something is.
    async fn failure(&self, node: &Node) -> Option<String> {
        let (ours, peer) = tokio::join!(
            self.outcome(node, Runtime::Ours),
            self.outcome(node, Runtime::Peer)
        );
        let Self { name, expected, .. } = self;
        if !peer.is(*expected) {
            let Outcome { text, message, .. } = &peer;
            return Some(format!(
                "{name}: the peer is not {expected:?}: {message}\n{text}"
            ));
        }
        let failure = compare(name, &ours.text, &peer.text)?;
        Some(format!("{failure}{}", ours.message))
    }

    async fn outcome(&self, node: &Node, runtime: Runtime) -> Outcome {
        let container = self.container(node, runtime);
        let result = container.run().await;
        Outcome::new(&container, &result)
    }
}

/// What is compared, as text.
struct Outcome {
    text: String,
    status: Option<u32>,
    /// For people: what the shim said.
    message: String,
}

impl Outcome {
    fn new(container: &Container<'_>, result: &Result<Run, Status>) -> Self {
        let mut text = String::new();
        let (mut status, mut message) = (None, String::new());
        match result {
            Ok(run) => {
                let mut events = run.events.clone();
                // The kernel's word of want and that of the end come by different ways.
                events.sort_by_key(|event| event.starts_with("oom"));
                // It may kill more than one process before there is room.
                events.dedup();
                status = Some(run.exit);
                let _ = writeln!(text, "exit {}\nevents {}", run.exit, events.join(", "));
                let _ = writeln!(text, "stdout:\n{}", run.stdout);
                let _ = writeln!(text, "stderr:\n{}", run.stderr);
            }
            Err(refusal) => {
                message = refusal.message().to_owned();
                let _ = writeln!(text, "result: {}", told(refusal));
            }
        }
        if let Ok(log) = fs::read_to_string(container.run_dir().join("log")) {
            let _ = writeln!(text, "log:\n{log}");
        }
        Self {
            text: normalise(container, &text),
            status,
            message,
        }
    }

    fn is(&self, expected: Expected) -> bool {
        match expected {
            Expected::Exit(status) => self.status == Some(status),
            Expected::Shows(text) => self.status == Some(0) && self.text.contains(text),
            Expected::Refused => self.status.is_none(),
            Expected::Any => true,
        }
    }
}

/// Runs each case under both runtimes, on a node of their own, and tells all that differ.
pub(crate) async fn check(cases: &[Case]) {
    if !is_able() {
        return;
    }
    let node = Arc::new(Node::start().await);
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut runs = JoinSet::new();
    for &case in cases {
        let (node, room) = (node.clone(), room.clone());
        runs.spawn(async move {
            let _held = room.acquire().await;
            case.failure(&node).await
        });
    }
    let failures: Vec<_> = runs.join_all().await.into_iter().flatten().collect();
    let (n, all) = (failures.len(), cases.len());
    println!("{all} cases");
    assert!(n == 0, "{n} of {all} cases:\n\n{}", failures.join("\n\n"));
    Arc::into_inner(node)
        .expect("all cases have ended")
        .end()
        .await;
}

/// Runs one story under both runtimes and compares what it tells.
pub(crate) async fn same(
    node: &Node,
    name: &str,
    story: impl AsyncFn(Container<'_>) -> Result<String, Status>,
) {
    let tell = async |runtime| {
        let container = node.container(runtime, &slug(name));
        let told = match story(container.clone()).await {
            Ok(told) => told,
            Err(status) => panic!("{name}, {runtime:?}: {status}\n{}", node.log_tail()),
        };
        normalise(&container, &told)
    };
    let (ours, peer) = tokio::join!(tell(Runtime::Ours), tell(Runtime::Peer));
    println!("== {name}\n{peer}");
    if let Some(failure) = compare(name, &ours, &peer) {
        panic!("{failure}");
    }
}

/// What containerd takes for a name.
fn slug(name: &str) -> String {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join("-")
}

fn compare(name: &str, ours: &str, peer: &str) -> Option<String> {
    let exception = EXCEPTIONS.iter().find(|exception| exception.case == name);
    let is_right = match exception {
        Some(exception) => ours.contains(exception.ours) || ours == peer,
        None => ours == peer,
    };
    (!is_right).then(|| format!("== {name}\n-- ours\n{ours}-- peer\n{peer}"))
}

/// How a result reads in a story.
pub(crate) fn outcome<T: std::fmt::Debug>(result: &Result<T, Status>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(status) => told(status),
    }
}

/// The code, and why a program could not be executed. The peer's shim says `Unknown` of nearly all that is refused, where
/// ours tells why.
fn told(status: &Status) -> String {
    let code = match status.code() {
        Code::Unknown | Code::InvalidArgument | Code::FailedPrecondition => "refused".to_owned(),
        code => format!("{code:?}"),
    };
    let known = [
        "executable file not found",
        "permission denied",
        "exec format error",
    ];
    let message = status.message();
    let why = known.into_iter().find(|text| message.contains(text));
    format!("{code} {}", why.unwrap_or_default())
}

/// Takes out what differs from one container to the next.
fn normalise(container: &Container<'_>, text: &str) -> String {
    let node = container.node;
    let bundle = node.bundle(container.runtime, &container.id);
    let text = text
        .replace(&bundle.display().to_string(), "BUNDLE")
        .replace(&container.folder().display().to_string(), "FOLDER")
        .replace(&node.namespace(container.runtime), "NAMESPACE");
    let mut lines: Vec<_> = text.lines().map(mount_line).collect();
    // Those that follow each other are in the order in which they were made, which is nobody's concern.
    lines
        .chunk_by_mut(|one, next| one.0 && next.0)
        .for_each(<[_]>::sort);
    lines.into_iter().map(|(_, line)| line + "\n").collect()
}

/// Whether a line is one of mountinfo; then without the numbers of mounts, devices and peer groups.
///
/// Source: proc_pid_mountinfo(5).
fn mount_line(line: &str) -> (bool, String) {
    let fields: Vec<_> = line.split(' ').collect();
    let is_mount = fields.len() > 8
        && fields[..2].iter().all(|field| field.parse::<u32>().is_ok())
        && fields[2].contains(':');
    if !is_mount {
        return (false, line.to_owned());
    }
    if fields[3] == "/null" {
        // What hides a file: the host's null device here, the container's own there.
        return (true, format!("/null {}", fields[4]));
    }
    let fields = fields[3..].iter().map(|field| {
        let group = field.split_once(':').map(|(kind, _)| kind);
        match group {
            Some(kind @ ("shared" | "master" | "propagate_from")) => kind,
            _ => field,
        }
    });
    (true, fields.collect::<Vec<_>>().join(" "))
}
