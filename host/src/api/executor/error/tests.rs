use std::{io, sync::Arc, time::Duration};

use expect_test::expect;
use futures_util::FutureExt;
use http_body_util::BodyExt;

use super::*;
use crate::{
    adapter::{CreateError, EngineError},
    executor::execution::Exit,
    id::{ClassName, InstanceId, SandboxId},
    storage::objects::ObjectError,
};

fn id() -> InstanceId {
    InstanceId::try_new("a").unwrap()
}

fn exit(out_of_memory: bool) -> Exit {
    Exit {
        code: 137,
        out_of_memory,
        output: String::new(),
    }
}

fn conflict(is_pending: bool) -> StartError {
    StartError::Conflict {
        id: id(),
        is_pending,
    }
}

fn code() -> StartError {
    let path = "/a/code.tar.gz".into();
    let source = ObjectError::Missing { path };
    StartError::Code { id: id(), source }
}

fn storage() -> StartError {
    let source = ObjectError::Stalled {
        path: "/a/code.tar.gz".into(),
        patience: Duration::from_secs(60),
    };
    StartError::Code { id: id(), source }
}

fn sandbox(source: CreateError) -> StartError {
    StartError::Sandbox { id: id(), source }
}

fn image() -> StartError {
    sandbox(CreateError::Image {
        image: "node:1".into(),
        source: "no such tag".into(),
    })
}

fn engine() -> EngineError {
    EngineError::Refused {
        what: "make a task",
        message: "no".into(),
    }
}

fn command() -> StartError {
    let id = SandboxId::try_new("s").unwrap();
    sandbox(CreateError::Command {
        id,
        source: engine(),
    })
}

fn class() -> StartError {
    let class = ClassName::try_new("c").unwrap();
    sandbox(CreateError::Class { class })
}

fn exists() -> StartError {
    sandbox(CreateError::Exists {
        id: SandboxId::try_new("s").unwrap(),
    })
}

fn prepare() -> StartError {
    sandbox(CreateError::Prepare {
        id: SandboxId::try_new("s").unwrap(),
        step: "tmpfs",
        source: io::Error::from(io::ErrorKind::OutOfMemory),
    })
}

fn refused() -> StartError {
    let id = SandboxId::try_new("s").unwrap();
    sandbox(CreateError::Engine {
        id,
        source: engine(),
    })
}

fn exited(out_of_memory: bool) -> StartError {
    StartError::Exited {
        id: id(),
        exit: exit(out_of_memory),
    }
}

/// Compares `status type` of a creation that fails, and of an execution that needed it.
#[track_caller]
fn check_start(error: StartError, create: &str, execute: &str) {
    let shown = |error: &ApiError| format!("{} {}", error.status.as_u16(), error.kind);
    assert_eq!(shown(&ApiError::create(&error)), create, "{error:?}");
    check_listed(error.kind());
    let execution = ExecuteError::Start(Arc::new(error));
    assert_eq!(
        shown(&ApiError::execute(&execution)),
        execute,
        "{execution:?}"
    );
}

/// The README's table of errors has a line for each type.
#[track_caller]
fn check_listed(kind: &str) {
    let readme = include_str!("../../../../../README.md");
    let line = format!("\n| `{kind}` |");
    assert!(readme.contains(&line), "README.md lists no {kind}");
}

#[test]
fn each_failed_start_has_its_status() {
    check_start(
        conflict(true),
        "409 runtime_conflict",
        "409 runtime_conflict",
    );
    check_start(code(), "500 source_missing", "400 source_missing");
    check_start(storage(), "500 source_failed", "500 source_failed");
    check_start(image(), "500 image_missing", "400 image_missing");
    check_start(
        command(),
        "500 runtime_command_failed",
        "400 runtime_command_failed",
    );
    check_start(class(), "500 host_failed", "500 host_failed");
    check_start(exists(), "500 host_failed", "500 host_failed");
    check_start(prepare(), "500 host_failed", "500 host_failed");
    check_start(refused(), "500 host_failed", "500 host_failed");
    check_start(exited(false), "500 runtime_exited", "400 runtime_exited");
    check_start(
        exited(true),
        "500 runtime_out_of_memory",
        "400 runtime_out_of_memory",
    );
    check_start(
        StartError::Stopping,
        "503 host_stopping",
        "503 host_stopping",
    );
}

#[test]
fn what_is_not_admitted_has_the_status_of_its_reason() {
    let refused = |source| StartError::NotAdmitted { id: id(), source };
    let mib = 1 << 20;
    let (needed, reserved, budget) = (256 * mib, 512 * mib, 600 * mib);
    let memory = Shortage::Memory {
        needed,
        reserved,
        budget,
    };
    let pressure = Shortage::Pressure {
        resource: "cpu",
        line: "some",
        found: 95.41,
        limit: 80.0,
    };
    let large = Shortage::TooLarge { needed, budget };
    let full = Shortage::Queue { n_waiting: 256 };
    let expected = expect![[r#"
        instance a was not admitted: its 256 MiB of memory do not fit: 512 of the 600 MiB that all instances of this node may have are reserved by instances in use; come back later, or raise "memory.budget" of [admission]
        instance a was not admitted: some cpu pressure of this machine is 95.41 %, above the threshold of 80 %: come back later, or raise "cpu.pressure" of [admission]
        instance a was not admitted: 256 instances wait to be started: come back later, or raise "queue" or "wait_ms" of [admission]
        instance a was not admitted: its 256 MiB of memory are more than the 600 MiB that all instances of this node may have: let it ask for less, or raise "memory.budget" of [admission]
    "#]];
    let (mut told, status) = (String::new(), "503");
    for (shortage, status) in [
        (memory, status),
        (pressure, status),
        (full, status),
        (large, "400"),
    ] {
        let expected = format!("{status} {}", shortage.kind());
        let error = ApiError::create(&refused(shortage.clone()));
        told += &format!("{}\n", error.message);
        assert!(shown(&error, false).contains(&error.message.replace('"', "\\\"")));
        let comes_back = shown(&error, false).contains("\nretry-after: 1\n");
        assert_eq!(comes_back, status == "503");
        check_start(refused(shortage), &expected, &expected);
    }
    expected.assert_eq(&told);
}

#[track_caller]
fn check(error: ExecuteError, expected: &str) {
    let error = ApiError::execute(&error);
    check_listed(error.kind);
    let status = error.status.as_u16();
    let shown = format!("{status} {}: {}", error.kind, error.message);
    assert_eq!(shown, expected);
}

#[test]
fn an_execution_without_its_runtime_has_its_status() {
    check(
        ExecuteError::NotFound { id: id() },
        "404 runtime_not_found: Runtime not found. Please start it first or provide runtime-related parameters.",
    );
    check(
        ExecuteError::Deleted { id: id() },
        "404 runtime_not_found: Runtime no longer exists.",
    );
    check(
        ExecuteError::StartTimeout {
            id: id(),
            is_running: true,
        },
        "400 runtime_not_listening: Timed out waiting for runtime. It runs, but does not listen on port 3000.",
    );
    check(
        ExecuteError::StartTimeout {
            id: id(),
            is_running: false,
        },
        "400 runtime_timeout: Timed out waiting for runtime. It is still being started.",
    );
}

#[test]
fn an_execution_that_fails_in_its_runtime_has_its_status() {
    check(
        ExecuteError::Timeout {
            id: id(),
            seconds: 15,
        },
        "500 execution_timeout: instance a did not answer within 15 s",
    );
    check(
        ExecuteError::QueueFull { id: id(), queue: 4 },
        "503 execution_queue_full: instance a has 4 executions waiting and takes no more",
    );
    check(
        ExecuteError::Exited {
            id: id(),
            exit: exit(false),
        },
        "500 runtime_exited: instance a exited with code 137 during the execution",
    );
    check(
        ExecuteError::Exited {
            id: id(),
            exit: exit(true),
        },
        "500 runtime_out_of_memory: instance a was killed by its memory limit during the execution",
    );
    check(
        ExecuteError::Broken {
            id: id(),
            reason: "reset".into(),
        },
        "500 execution_broken: instance a broke off the execution: reset",
    );
}

#[test]
fn messages_are_those_that_clients_know() {
    #[track_caller]
    fn check(error: StartError, expected: &str) {
        assert_eq!(ApiError::create(&error).message, expected);
    }
    check(
        conflict(true),
        "A runtime with the same ID is already being created. Attempt a execution soon.",
    );
    check(conflict(false), "Runtime already exists ");
    check(
        code(),
        "cannot get the code of instance a: /a/code.tar.gz is not in the storage",
    );
    check(
        image(),
        "cannot start instance a: missing image node:1 and failed to pull it: no such tag",
    );
    check(refused(), "cannot start instance a");
}

/// Headers and body as sent.
fn shown(error: &ApiError, is_development: bool) -> String {
    let config = config::Executor {
        is_development,
        version: "1.2.3".into(),
        ..config::Executor::default()
    };
    let response = error.response(&config);
    let (head, body) = response.into_parts();
    let mut text = format!("{}\n", head.status);
    for (name, value) in &head.headers {
        text += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    let body = body.collect().now_or_never().unwrap().unwrap().to_bytes();
    let line = format!("\"line\":{}", error.location.line());
    text + &str::from_utf8(&body).unwrap().replace(&line, "\"line\":1")
}

#[test]
fn production_hides_what_failed_within_the_host() {
    let error = ApiError::create(&refused());
    expect![[r#"
        500 Internal Server Error
        content-type: application/json; charset=UTF-8
        cache-control: no-cache, no-store, must-revalidate
        expires: 0
        pragma: no-cache
        {"type":"host_failed","message":"Internal server error.","code":500,"version":"1.2.3"}"#]]
    .assert_eq(&shown(&error, false));
    expect![[r#"
        500 Internal Server Error
        content-type: application/json; charset=UTF-8
        cache-control: no-cache, no-store, must-revalidate
        expires: 0
        pragma: no-cache
        {"type":"host_failed","message":"cannot start instance a","code":500,"version":"1.2.3","file":"host/src/api/executor/error/tests.rs","line":1,"trace":["cannot start instance a","cannot make sandbox s","containerd could not make a task: no"]}"#]]
    .assert_eq(&shown(&error, true));
}

#[test]
fn load_says_when_to_come_back() {
    let error = ApiError::execute(&ExecuteError::QueueFull { id: id(), queue: 1 });
    assert!(shown(&error, false).contains("\nretry-after: 1\n"));
}
