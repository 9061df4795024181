//! The small program that containerd executes: what it does by itself, and what it leaves to the other one.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use containerd_shim::{
    bootstrap::{BootstrapParams, BootstrapResult},
    protos::protobuf::Message,
};
use tempfile::TempDir;

use crate::{
    node::{Node, Runtime, is_able, shim},
    task::Task,
};

const GROUP: &str = "start";
const OTHER: &str = "containerd-shim-opr-v1-bootstrap";

/// A bundle, and the shim of its group, which runs.
struct Target {
    node: Node,
    bundle: PathBuf,
}

impl Target {
    /// None where this machine cannot run these tests.
    async fn start() -> Option<Self> {
        if !is_able() {
            return None;
        }
        let node = Node::start().await;
        let bundle = node.dir.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        let target = Self { node, bundle };
        target.spec(GROUP);
        Some(target)
    }

    async fn keeper(&self) -> Task<'_> {
        let keeper = self.node.container(Runtime::Ours, "keeper").group(GROUP);
        let task = keeper.args(&["sleep", "1000"]).silent();
        task.create().await.unwrap()
    }

    fn spec(&self, group: &str) {
        let spec = format!(
            r#"{{"ociVersion":"1.1.0","annotations":{{"io.containerd.runc.v2.group":"{group}"}}}}"#
        );
        fs::write(self.bundle.join("config.json"), spec).unwrap();
    }

    fn arguments(&self, action: &str) -> Vec<String> {
        let namespace = self.node.namespace(Runtime::Ours);
        let socket = self.node.socket().display().to_string();
        [
            "-namespace",
            &namespace,
            "-address",
            &socket,
            "-publish-binary",
            "containerd",
            "-id",
            "next",
            action,
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn run(&self, program: &Path, arguments: &[String], input: Stdio) -> Output {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.bundle)
            .stdin(input);
        command.output().unwrap()
    }

    fn address(&self) -> String {
        fs::read_to_string(self.node.bundle(Runtime::Ours, "keeper").join("address")).unwrap()
    }
}

/// The program without the others beside it.
fn alone() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("containerd-shim-opr-v1");
    fs::copy(shim(), &program).unwrap();
    (folder, program)
}

/// A pipe with these bytes in it, whose other end is closed.
fn pipe(bytes: &[u8]) -> Stdio {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(bytes).unwrap();
    reader.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_runs_is_found_by_the_small_program_alone() {
    let Some(target) = Target::start().await else {
        return;
    };
    let keeper = target.keeper().await;
    let (_folder, program) = alone();
    let start = target.arguments("start");
    for input in [Stdio::null(), pipe(b"")] {
        let _ = fs::remove_file(target.bundle.join("address"));
        let output = target.run(&program, &start, input);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), target.address());
        let noted = fs::read_to_string(target.bundle.join("address")).unwrap();
        assert_eq!(noted, target.address());
    }
    keeper.remove().await.unwrap();
    target.node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_else_is_left_to_the_other_program() {
    let Some(target) = Target::start().await else {
        return;
    };
    let keeper = target.keeper().await;
    let (_folder, program) = alone();
    #[track_caller]
    fn check(output: &Output) {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && text.contains(OTHER),
            "{output:?}"
        );
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    let start = target.arguments("start");
    let with = |position: usize, argument: &str| {
        let mut arguments = start.clone();
        arguments.insert(position, argument.to_owned());
        arguments
    };
    for arguments in [
        target.arguments("delete"),
        vec!["--help".to_owned()],
        vec![],
        with(0, "-unknown"),
        with(start.len(), "more"),
        start[2..].to_vec(),
        start[..start.len() - 1].to_vec(),
    ] {
        check(&target.run(&program, &arguments, Stdio::null()));
    }
    check(&target.run(&program, &start, pipe(b"options")));
    target.spec("another");
    check(&target.run(&program, &start, Stdio::null()));
    for spec in ["", "{", &format!(r#"{{"x":"{}"}}"#, "x".repeat(1 << 20))] {
        fs::write(target.bundle.join("config.json"), spec).unwrap();
        check(&target.run(&program, &start, Stdio::null()));
    }
    // More annotations than it has memory for.
    let many: Vec<_> = (0..23_000).map(|n| format!(r#""{n}":"""#)).collect();
    let spec = format!(
        r#"{{"annotations":{{{},"io.containerd.runc.v2.group":"{GROUP}"}}}}"#,
        many.join(",")
    );
    fs::write(target.bundle.join("config.json"), spec).unwrap();
    check(&target.run(&program, &start, Stdio::null()));
    fs::remove_file(target.bundle.join("config.json")).unwrap();
    check(&target.run(&program, &start, Stdio::null()));
    keeper.remove().await.unwrap();
    target.node.end().await;
}

/// Its arguments, its environment and what stands on its standard input.
#[tokio::test(flavor = "multi_thread")]
async fn the_other_program_gets_all_that_containerd_has_given() {
    let Some(target) = Target::start().await else {
        return;
    };
    let keeper = target.keeper().await;
    let output = target.run(&shim(), &["--help".to_owned()], Stdio::null());
    assert!(output.status.success(), "{output:?}");
    assert!(
        output
            .stdout
            .starts_with(b"containerd-shim-opr-v1: makes OCI containers")
    );

    let params = BootstrapParams {
        instance_id: "next".to_owned(),
        namespace: target.node.namespace(Runtime::Ours),
        containerd_grpc_address: target.node.socket().display().to_string(),
        ..BootstrapParams::default()
    };
    let input = pipe(&params.write_to_bytes().unwrap());
    let output = target.run(&shim(), &target.arguments("start"), input);
    assert!(output.status.success(), "{output:?}");
    let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(result.address, target.address());

    let mut command = Command::new(shim());
    let namespace = target.node.namespace(Runtime::Ours);
    command.args(["-namespace", &namespace, "-id", "next", "start"]);
    command.env("GRPC_ADDRESS", target.node.socket());
    let output = command.current_dir(&target.bundle).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), target.address());
    keeper.remove().await.unwrap();
    target.node.end().await;
}
