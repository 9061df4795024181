//! The executor over sandboxes of this process: the server in each is a real one, on a loopback port.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{body::Frame, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opr_host::{
    adapter::memory::{Machine, Memory},
    config::{Config, Limits},
    executor::{
        Executor,
        execution::{Answer, Body, ExecuteError, Execution, Logs, Start, StartError},
        instance::{Code, InstanceSpec, Protocol, RestartPolicy},
        job::JobSpec,
    },
    id::{ClassName, InstanceId},
    storage::objects::Objects,
    telemetry::Metrics,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

mod admission;

/// A node with an executor over sandboxes of this process.
struct Node {
    dir: TempDir,
    config: Config,
    adapter: Arc<Memory>,
    executor: Arc<Executor>,
    n_connections: Arc<AtomicUsize>,
}

impl Node {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new().unwrap();
        let mut config = Config {
            state_dir: dir.path().into(),
            ..Config::default()
        };
        config.executor.retry_delay_ms = 10;
        change(&mut config);
        let n_connections = Arc::<AtomicUsize>::default();
        let counted = n_connections.clone();
        let adapter = Memory::new(Box::new(move |machine| {
            Box::pin(program(machine, counted.clone()))
        }));
        let executor = executor(&config, &adapter).await;
        Self {
            dir,
            config,
            adapter,
            executor,
            n_connections,
        }
    }

    fn spec(&self, id: &str, command: &str) -> InstanceSpec {
        InstanceSpec {
            id: instance(id),
            function: None,
            class: ClassName::try_new("function").unwrap(),
            image: "busybox".parse().unwrap(),
            protocol: Protocol::V5,
            command: Some(vec![command.into()]),
            entrypoint: "index.js".into(),
            variables: BTreeMap::new(),
            code: Code::Unpacked(self.dir.path().into()),
            limits: Limits::default(),
            restart: RestartPolicy::No,
            keep_alive: None,
        }
    }

    async fn execute(&self, spec: &InstanceSpec, path: &str) -> Result<Answer, ExecuteError> {
        self.executor.execute(execution(spec, path)).await
    }

    /// Status and body of one execution.
    async fn text(&self, spec: &InstanceSpec, path: &str) -> Result<String, ExecuteError> {
        let answer = self.execute(spec, path).await?;
        let body = answer.response.into_body().collect().await.unwrap();
        Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
    }

    /// Waits until all that goes on in the background has ended.
    async fn settle(&self, n_sandboxes: usize) {
        let settled = async {
            while self.adapter.n_sandboxes() != n_sandboxes {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(10), settled).await;
        settled.unwrap_or_else(|_| panic!("{:?}", self.adapter));
    }
}

async fn executor(config: &Config, adapter: &Arc<Memory>) -> Arc<Executor> {
    let metrics = Arc::<Metrics>::default();
    let objects = Objects::new(&config.storage.device).unwrap();
    Executor::start(Arc::new(config.clone()), adapter.clone(), metrics, objects)
        .await
        .unwrap()
}

fn instance(id: &str) -> InstanceId {
    InstanceId::try_new(id).unwrap()
}

fn body(text: &'static str) -> Body {
    Full::from(text)
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn execution(spec: &InstanceSpec, path: &str) -> Execution {
    Execution {
        instance: spec.id.clone(),
        spec: Some(Arc::new(spec.clone())),
        request: Request::get(path).body(body("")).unwrap(),
        timeout: Duration::from_secs(10),
        start_timeout: None,
        logging: true,
        protocol: Protocol::V5,
    }
}

/// What runs in a sandbox; its command says what it does.
async fn program(machine: Machine, n_connections: Arc<AtomicUsize>) -> u32 {
    let command = machine.spec.command.clone().unwrap_or_default().join(" ");
    match command.as_str() {
        "serve" => {
            let (exit, mut exited) = mpsc::channel(1);
            let listener = machine.listen().await;
            loop {
                tokio::select! {
                    code = exited.recv() => return code.unwrap_or(0),
                    stream = listener.accept() => {
                        n_connections.fetch_add(1, Ordering::SeqCst);
                        let (machine, exit) = (machine.clone(), exit.clone());
                        let service = service_fn(move |request| serve(request, machine.clone(), exit.clone()));
                        let io = TokioIo::new(stream.unwrap().0);
                        tokio::spawn(http1::Builder::new().serve_connection(io, service));
                    }
                }
            }
        }
        "sleep" => std::future::pending().await,
        "crash" => {
            machine.output.push(Bytes::from_static(b"no such module\n"));
            7
        }
        "eat memory" => {
            machine.run_out_of_memory();
            137
        }
        other => panic!("{other}"),
    }
}

async fn serve(
    request: Request<Incoming>,
    machine: Machine,
    exit: mpsc::Sender<u32>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let answer = Response::builder();
    Ok(match path.as_str() {
        "/exit" => {
            exit.send(3).await.unwrap();
            std::future::pending().await
        }
        "/wait" => std::future::pending().await,
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            answer.body(body("slow")).unwrap()
        }
        "/close" => answer
            .header("connection", "close")
            .body(body("closed"))
            .unwrap(),
        "/logs" => {
            for (kind, text) in [("logs", "said"), ("errors", "failed")] {
                let file = machine.scratch.join(format!("logs/abc_{kind}.log"));
                fs::write(file, text).unwrap();
            }
            let answer = answer.header("x-open-runtimes-log-id", "abc");
            answer.body(body("logged")).unwrap()
        }
        "/echo" => answer
            .body(request.into_body().map_err(Into::into).boxed_unsync())
            .unwrap(),
        "/headers" => {
            let text = format!("{:?}", request.headers());
            let body = Full::from(text).map_err(|never| match never {});
            answer.body(body.boxed_unsync()).unwrap()
        }
        _ => answer.body(body("hello")).unwrap(),
    })
}

#[tokio::test]
async fn fifty_executions_of_an_absent_instance_make_one() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    let answers = join_all((0..50).map(|_| node.text(&spec, "/"))).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.as_deref().ok() == Some("hello"))
    );
    assert_eq!(node.adapter.n_created(), 1);
}

#[tokio::test]
async fn the_first_start_is_cold_and_the_next_warm() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    let start = async || node.execute(&spec, "/").await.unwrap().start;
    assert_eq!(start().await, Start::Cold);
    assert_eq!(start().await, Start::Warm);
}

#[tokio::test]
async fn one_connection_serves_many_executions() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    for _ in 0..20 {
        node.text(&spec, "/").await.unwrap();
    }
    assert!(node.n_connections.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn a_connection_that_the_server_closes_is_replaced() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    for _ in 0..20 {
        assert_eq!(node.text(&spec, "/close").await.unwrap(), "closed");
        assert_eq!(node.text(&spec, "/").await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn without_a_spec_an_absent_instance_is_not_found() {
    let node = Node::start(|_| {}).await;
    let mut execution = execution(&node.spec("hello", "serve"), "/");
    execution.spec = None;
    let error = node.executor.execute(execution).await.unwrap_err();
    assert!(matches!(error, ExecuteError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn all_who_wait_for_a_failed_start_learn_why() {
    let node = Node::start(|_| {}).await;
    let mut spec = node.spec("hello", "serve");
    spec.code = Code::Archive("/nowhere/code.tar.gz".into());
    let answers = join_all((0..5).map(|_| node.text(&spec, "/"))).await;
    for answer in answers {
        assert_eq!(answer.unwrap_err().kind(), "source_missing");
    }
    assert!(node.executor.list().is_empty());
    assert_eq!(node.adapter.n_created(), 0);
}

#[tokio::test]
async fn a_main_process_that_ends_at_once_is_told_with_its_output() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "crash");
    let error = node.text(&spec, "/").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "instance hello exited with code 7, having written: no such module before it listened on port 3000"
    );
    assert_eq!(error.kind(), "runtime_exited");
    node.settle(0).await;
}

#[tokio::test]
async fn a_kill_for_want_of_memory_is_told() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "eat memory");
    let error = node.text(&spec, "/").await.unwrap_err();
    assert_eq!(error.kind(), "runtime_out_of_memory");
}

#[tokio::test]
async fn an_end_during_an_execution_is_told_and_the_next_starts_anew() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    node.text(&spec, "/").await.unwrap();
    let error = node.text(&spec, "/exit").await.unwrap_err();
    assert!(
        matches!(error, ExecuteError::Exited { ref exit, .. } if exit.code == 3),
        "{error}"
    );
    assert!(!error.may_retry());
    assert_eq!(node.text(&spec, "/").await.unwrap(), "hello");
    assert_eq!(node.adapter.n_created(), 2);
    node.settle(1).await;
}

#[tokio::test]
async fn a_main_process_that_ends_is_started_again_in_its_sandbox() {
    let node = Node::start(|_| {}).await;
    let mut spec = node.spec("hello", "serve");
    spec.restart = RestartPolicy::Always;
    node.text(&spec, "/").await.unwrap();
    let before = node.executor.get(&spec.id).unwrap();
    for _ in 0..2 {
        let error = node.text(&spec, "/exit").await.unwrap_err();
        assert_eq!(error.kind(), "runtime_exited");
        assert_eq!(node.text(&spec, "/").await.unwrap(), "hello");
    }
    let after = node.executor.get(&spec.id).unwrap();
    assert_eq!(
        (before.key, before.hostname, before.created),
        (after.key, after.hostname, after.created)
    );
    assert_eq!(node.adapter.n_created(), 1);
    assert!(node.executor.delete(&spec.id).await);
    node.settle(0).await;
}

#[tokio::test]
async fn one_that_ends_again_and_again_tells_why_and_can_be_deleted() {
    let node = Node::start(|_| {}).await;
    let mut spec = node.spec("hello", "crash");
    spec.restart = RestartPolicy::OnFailure;
    for _ in 0..4 {
        let error = node.text(&spec, "/").await.unwrap_err();
        assert_eq!(error.kind(), "runtime_exited");
    }
    // The next start is most of a second away.
    let mut execution = execution(&spec, "/");
    execution.timeout = Duration::from_millis(100);
    let error = node.executor.execute(execution).await.unwrap_err();
    assert_eq!(error.kind(), "runtime_exited", "{error}");
    let (lines, _) = node.executor.journal().follow("hello", usize::MAX);
    let n_runs = lines.iter().filter(|line| line.text == "no such module");
    assert!(n_runs.count() >= 2, "{lines:?}");
    assert_eq!(node.executor.list().len(), 1);
    assert!(node.executor.delete(&spec.id).await);
    assert!(node.executor.list().is_empty());
    node.settle(0).await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_pause_before_a_restart() {
    let node = Node::start(|_| {}).await;
    let mut spec = node.spec("hello", "crash");
    spec.restart = RestartPolicy::Always;
    for _ in 0..6 {
        node.text(&spec, "/").await.unwrap_err();
    }
    let stopping = node.executor.drain(Duration::from_secs(60));
    let stopped = tokio::time::timeout(Duration::from_secs(2), stopping).await;
    assert!(stopped.is_ok());
    node.executor.delete_all().await;
    assert!(node.executor.list().is_empty());
}

#[tokio::test]
async fn an_instance_that_never_listens_times_out() {
    let node = Node::start(|_| {}).await;
    let mut execution = execution(&node.spec("hello", "sleep"), "/");
    execution.timeout = Duration::from_millis(200);
    let error = node.executor.execute(execution).await.unwrap_err();
    assert!(
        matches!(
            error,
            ExecuteError::StartTimeout {
                is_running: true,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn more_executions_than_may_wait_are_refused() {
    let node = Node::start(|config| {
        config.executor.concurrency = 1;
        config.executor.queue = 1;
    })
    .await;
    let spec = node.spec("hello", "serve");
    node.text(&spec, "/").await.unwrap();
    let answers = join_all((0..5).map(|_| node.text(&spec, "/slow"))).await;
    let kinds: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_ref().map_or_else(ExecuteError::kind, |_| "ok"))
        .collect();
    let full = "execution_queue_full";
    assert_eq!(kinds, ["ok", "ok", full, full, full]);
    assert_eq!(node.text(&spec, "/").await.unwrap(), "hello");
}

#[tokio::test]
async fn logs_come_with_the_end_of_the_answer() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    let answer = node.execute(&spec, "/logs").await.unwrap();
    assert!(
        !answer
            .response
            .headers()
            .contains_key("x-open-runtimes-log-id")
    );
    answer.response.into_body().collect().await.unwrap();
    let expected = Logs {
        logs: b"said".to_vec(),
        errors: b"failed".to_vec(),
    };
    assert_eq!(answer.logs.await.unwrap(), expected);
    let (lines, _) = node.executor.journal().follow("hello", 10);
    let lines: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(lines, ["said", "failed"]);
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    let (frames, source) = mpsc::channel(1);
    let source = tokio_stream::wrappers::ReceiverStream::new(source);
    let mut execution = execution(&spec, "/echo");
    execution.request = Request::post("/echo")
        .body(StreamBody::new(source).boxed_unsync())
        .unwrap();
    let answer = tokio::spawn({
        let executor = node.executor.clone();
        async move { executor.execute(execution).await }
    });
    frames
        .send(Ok(Frame::data(Bytes::from_static(b"one"))))
        .await
        .unwrap();
    let mut body = answer.await.unwrap().unwrap().response.into_body();
    for text in ["one", "two"] {
        if text == "two" {
            frames
                .send(Ok(Frame::data(Bytes::from_static(b"two"))))
                .await
                .unwrap();
        }
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
    drop(frames);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_caller_who_goes_away_gives_the_place_back() {
    let node = Node::start(|config| config.executor.concurrency = 1).await;
    let spec = node.spec("hello", "serve");
    node.text(&spec, "/").await.unwrap();
    let wait = tokio::time::timeout(Duration::from_millis(50), node.text(&spec, "/wait"));
    assert!(wait.await.is_err());
    assert_eq!(node.text(&spec, "/").await.unwrap(), "hello");
    assert_eq!(node.executor.list()[0].n_executions, 0);
}

#[tokio::test]
async fn forged_protocol_headers_do_not_reach_the_function() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    let mut execution = execution(&spec, "/headers");
    let headers = execution.request.headers_mut();
    headers.insert("x-open-runtimes-secret", "forged".parse().unwrap());
    let answer = node.executor.execute(execution).await.unwrap();
    let body = answer
        .response
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    let text = String::from_utf8_lossy(&body);
    let key = &node.executor.list()[0].key;
    assert!(
        text.contains(&format!("\"x-open-runtimes-secret\": \"{key}\"")),
        "{text}"
    );
    assert!(!text.contains("forged"), "{text}");
}

#[tokio::test]
async fn delete_answers_when_nothing_is_left() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    assert!(!node.executor.delete(&spec.id).await);
    node.text(&spec, "/").await.unwrap();
    assert!(node.executor.delete(&spec.id).await);
    assert_eq!(node.adapter.n_sandboxes(), 0);
    assert!(node.executor.get(&spec.id).is_none());
}

#[tokio::test]
async fn who_waits_for_an_instance_that_is_deleted_learns_it() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "sleep");
    let waiting = tokio::spawn({
        let (executor, execution) = (node.executor.clone(), execution(&spec, "/"));
        async move { executor.execute(execution).await }
    });
    node.settle(1).await;
    node.executor.delete(&spec.id).await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, ExecuteError::Deleted { .. }), "{error}");
}

#[tokio::test]
async fn a_second_creation_of_a_name_is_refused() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "sleep");
    let info = node.executor.create(spec.clone().into()).await.unwrap();
    assert!(!info.is_listening);
    let error = node.executor.create(spec.into()).await.unwrap_err();
    assert!(
        matches!(
            *error,
            StartError::Conflict {
                is_pending: false,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_idle_instance_is_reaped_and_a_busy_one_kept() {
    let node = Node::start(|config| {
        config.executor.inactive_threshold_s = 1;
        config.executor.maintenance_interval_s = 1;
    })
    .await;
    let (idle, busy) = (node.spec("idle", "serve"), node.spec("busy", "serve"));
    node.text(&idle, "/").await.unwrap();
    let _busy = tokio::spawn({
        let (executor, execution) = (node.executor.clone(), execution(&busy, "/wait"));
        async move { executor.execute(execution).await }
    });
    node.settle(2).await;
    node.settle(1).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let names: Vec<_> = node
        .executor
        .list()
        .into_iter()
        .map(|info| info.id)
        .collect();
    assert_eq!(names, [busy.id]);
}

#[tokio::test]
async fn an_instance_may_be_kept_for_longer_than_others() {
    let node = Node::start(|config| {
        config.executor.inactive_threshold_s = 0;
        config.executor.maintenance_interval_s = 1;
    })
    .await;
    let idle = node.spec("idle", "serve");
    let mut kept = node.spec("kept", "serve");
    kept.keep_alive = Some(Duration::from_secs(3600));
    for spec in [&idle, &kept] {
        node.text(spec, "/").await.unwrap();
    }
    node.settle(1).await;
    assert!(node.executor.get(&kept.id).is_some());
}

#[tokio::test]
async fn a_retired_instance_ends_with_its_last_execution() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    let answer = node.execute(&spec, "/").await.unwrap();
    node.executor.retire(&spec.id);
    assert_eq!(node.executor.list().len(), 1);
    drop(answer);
    node.settle(0).await;
}

#[tokio::test]
async fn the_next_process_adopts_what_runs() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    node.text(&spec, "/").await.unwrap();
    let before = node.executor.list().remove(0);
    let next = executor(&node.config, &node.adapter).await;
    let after = next.list().remove(0);
    assert_eq!(
        (after.id, after.key, after.hostname),
        (before.id, before.key, before.hostname)
    );
    let answer = next.execute(execution(&spec, "/")).await.unwrap();
    assert_eq!(answer.response.status(), 200);
    assert_eq!(node.adapter.n_created(), 1);
}

#[tokio::test]
async fn a_job_runs_to_its_end_and_leaves_nothing() {
    let node = Node::start(|_| {}).await;
    let mut job = node
        .executor
        .run(JobSpec {
            id: instance("build"),
            class: ClassName::try_new("build").unwrap(),
            image: "busybox".parse().unwrap(),
            command: vec!["crash".into()],
            env: Vec::new(),
            mounts: Vec::new(),
            limits: Limits::default(),
        })
        .await
        .unwrap();
    assert_eq!(job.wait().await.code, 7);
    assert_eq!(job.output.tail(), b"no such module\n");
    drop(job);
    node.settle(0).await;
}

#[tokio::test]
async fn a_stop_waits_for_executions_and_starts_no_more() {
    let node = Node::start(|_| {}).await;
    let spec = node.spec("hello", "serve");
    node.text(&spec, "/").await.unwrap();
    let (slow, ()) = tokio::join!(node.text(&spec, "/slow"), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.executor.drain(Duration::from_secs(10)).await;
    });
    assert_eq!(slow.unwrap(), "slow");
    let other = node.spec("other", "serve");
    assert_eq!(
        node.text(&other, "/").await.unwrap_err().kind(),
        "host_stopping"
    );
    assert_eq!(node.adapter.n_sandboxes(), 1);
}
