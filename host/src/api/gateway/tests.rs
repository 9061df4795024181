use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use expect_test::{Expect, expect};
use http::StatusCode;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    api::server::{Address, Server},
    config::Limits,
    executor::{
        admission::Shortage,
        command::{CommandError, Written},
        execution::{ExecuteError, Exit, Logs, Phases, Start, StartError},
        instance::{Code, InstanceInfo, Protocol, RestartPolicy},
        setup::Creation,
        transcript::Reader,
    },
    id::{ClassName, InstanceId},
    storage::objects::ObjectError,
};

const SOON: Duration = Duration::from_secs(5);

type Function = dyn Fn(Request<Body>) -> Result<Response<Body>, ExecuteError> + Send + Sync;

/// Executes by calling a closure. The sender is dropped with the execution.
struct Fake {
    function: Box<Function>,
    running: Option<mpsc::Sender<()>>,
    /// Whether the request is read whole before the closure is called.
    reads_first: bool,
}

#[async_trait::async_trait]
impl Instances for Fake {
    async fn execute(&self, execution: Execution) -> Result<Answer, ExecuteError> {
        if let Some(running) = &self.running {
            let _running = running.clone();
            running.send(()).await.unwrap();
            std::future::pending::<()>().await;
        }
        assert_eq!(execution.timeout, SOON);
        let mut request = execution.request;
        if self.reads_first {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            request = Request::from_parts(head, text(body));
        }
        let (sender, logs) = oneshot::channel();
        sender.send(Logs::default()).unwrap();
        Ok(Answer {
            response: (self.function)(request)?,
            start: Start::Cold,
            phases: Phases {
                sandbox: Duration::from_micros(1_250),
                first_byte: Duration::from_millis(3),
                ..Phases::default()
            },
            start_time: SystemTime::UNIX_EPOCH,
            began: Instant::now(),
            logs,
        })
    }

    async fn create(&self, _: Creation) -> Result<InstanceInfo, Arc<StartError>> {
        unreachable!("the gateway executes only")
    }
    async fn command(
        &self,
        _: &InstanceId,
        _: &str,
        _: Option<Duration>,
    ) -> Result<Written, CommandError> {
        unreachable!("the gateway executes only")
    }
    async fn follow(&self, _: &InstanceId) -> Option<Reader> {
        unreachable!("the gateway executes only")
    }
    fn list(&self) -> Vec<InstanceInfo> {
        unreachable!("the gateway executes only")
    }
    fn get(&self, _: &InstanceId) -> Option<InstanceInfo> {
        unreachable!("the gateway executes only")
    }
    async fn delete(&self, _: &InstanceId) -> bool {
        unreachable!("the gateway executes only")
    }
}

fn id() -> InstanceId {
    InstanceId::try_new("hello-1").unwrap()
}

fn target(name: &FunctionName) -> Target {
    Target {
        spec: Arc::new(InstanceSpec {
            id: id(),
            function: Some(name.clone()),
            class: ClassName::try_new("function").unwrap(),
            image: "openruntimes/node:v5-22".parse().unwrap(),
            protocol: Protocol::V5,
            command: None,
            entrypoint: "index.js".into(),
            variables: BTreeMap::new(),
            code: Code::None,
            limits: Limits::default(),
            restart: RestartPolicy::No,
            keep_alive: None,
        }),
        timeout: SOON,
        logging: true,
    }
}

fn gateway_of(fake: Fake) -> Gateway {
    let lookup: Lookup = Arc::new(|name| {
        let found = (name.as_str() == "hello").then(|| target(&name));
        Box::pin(async move { Ok(found) })
    });
    Gateway::new(lookup, Arc::new(fake))
}

fn gateway(
    function: impl Fn(Request<Body>) -> Result<Response<Body>, ExecuteError> + Send + Sync + 'static,
) -> Gateway {
    gateway_of(Fake {
        function: Box::new(function),
        running: None,
        reads_first: false,
    })
}

fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A function that tells its request line, and sends the body back.
fn echo(request: Request<Body>) -> Result<Response<Body>, ExecuteError> {
    let line = format!("{} {}", request.method(), request.uri());
    Ok(Response::builder()
        .header("x-line", line)
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .body(request.into_body())
        .unwrap())
}

/// Sends a request with these lines; answers status, headers and body as text.
async fn send(gateway: &Gateway, line: &str, headers: &[(&str, &str)]) -> String {
    let (method, uri) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = gateway.answer(request.body(text("")).unwrap()).await;
    let (head, body) = response.into_parts();
    let mut shown = format!("{}\n", head.status);
    for (name, value) in &head.headers {
        shown += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    let body = body.collect().await.unwrap().to_bytes();
    shown + std::str::from_utf8(&body).unwrap()
}

#[tokio::test]
async fn the_first_segment_is_the_function() {
    #[track_caller]
    fn check(answer: String, expected: &str) {
        let line = answer
            .lines()
            .find_map(|line| line.strip_prefix("x-line: "));
        assert_eq!(line.unwrap_or(&answer[..3]), expected, "{answer}");
    }
    let gateway = gateway(echo);
    for (line, expected) in [
        ("GET /hello", "GET /"),
        ("GET /hello?a=b", "GET /?a=b"),
        ("PUT /hello/", "PUT /"),
        ("GET /hello/a/b%2F?c=/d?", "GET /a/b%2F?c=/d?"),
        ("GET /hello//a", "GET //a"),
        ("GET http://node/hello/a", "GET /a"),
        ("PURGE /hello/../x", "PURGE /../x"),
        ("GET /", "404"),
        ("GET /other/", "404"),
        ("GET /%68ello/", "404"),
        ("GET //hello/", "404"),
        ("OPTIONS *", "404"),
    ] {
        check(send(&gateway, line, &[]).await, expected);
    }
}

#[tokio::test]
async fn answers_are_passed_on_with_their_timing() {
    expect![[r#"
        200 OK
        x-line: GET /
        server-timing: cold;desc="start", sandbox;dur=1.250, first_byte;dur=3.000
    "#]]
    .assert_eq(&send(&gateway(echo), "GET /hello", &[]).await);
}

#[tokio::test]
async fn failures_are_json() {
    async fn check(line: &str, headers: &[(&str, &str)], expected: Expect) {
        expected.assert_eq(&send(&gateway(echo), line, headers).await);
    }
    check(
        "GET /other",
        &[],
        expect![[r#"
            404 Not Found
            content-type: application/json; charset=UTF-8
            cache-control: no-store
            {"type":"function_not_found","message":"There is no such function.","code":404}"#]],
    )
    .await;
    check(
        "GET /hello",
        &[("connection", "Upgrade"), ("upgrade", "WebSocket")],
        expect![[r#"
            501 Not Implemented
            content-type: application/json; charset=UTF-8
            cache-control: no-store
            {"type":"general_not_implemented","message":"Web sockets are not supported.","code":501}"#]],
    )
    .await;
    let early = gateway(|_| {
        let mut response = Response::new(text(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        Ok(response)
    });
    assert!(send(&early, "GET /hello", &[]).await.starts_with("502"));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of every failure")]
fn each_failed_execution_has_its_status() {
    #[track_caller]
    fn check(error: ExecuteError, expected: &str) {
        let GatewayError::Execution { status, kind } = GatewayError::from(&error) else {
            panic!("not of an execution")
        };
        assert_eq!(format!("{} {kind}", status.as_u16()), expected, "{error:?}");
    }
    let exit = |out_of_memory| Exit {
        code: 1,
        out_of_memory,
        output: "secret".into(),
    };
    let start = |error| ExecuteError::Start(Arc::new(error));
    let sandbox = |source| start(StartError::Sandbox { id: id(), source });
    let code = ObjectError::Missing {
        path: "/a/code.tar.gz".into(),
    };
    let is_running = true;
    let image = crate::adapter::CreateError::Image {
        image: "i".into(),
        source: "none".into(),
    };
    let prepare = crate::adapter::CreateError::Prepare {
        id: crate::id::SandboxId::try_new("s").unwrap(),
        step: "tmpfs",
        source: std::io::Error::from(std::io::ErrorKind::OutOfMemory),
    };
    check(ExecuteError::NotFound { id: id() }, "404 runtime_not_found");
    check(ExecuteError::Deleted { id: id() }, "503 runtime_not_found");
    check(
        ExecuteError::StartTimeout {
            id: id(),
            is_running,
        },
        "504 runtime_not_listening",
    );
    check(
        ExecuteError::Timeout {
            id: id(),
            seconds: 1,
        },
        "504 execution_timeout",
    );
    check(
        ExecuteError::QueueFull { id: id(), queue: 1 },
        "503 execution_queue_full",
    );
    check(
        ExecuteError::Exited {
            id: id(),
            exit: exit(false),
        },
        "502 runtime_exited",
    );
    check(
        ExecuteError::Exited {
            id: id(),
            exit: exit(true),
        },
        "502 runtime_out_of_memory",
    );
    check(
        ExecuteError::Broken {
            id: id(),
            reason: String::new(),
        },
        "502 execution_broken",
    );
    check(start(StartError::Stopping), "503 host_stopping");
    let refused = |source| start(StartError::NotAdmitted { id: id(), source });
    let (needed, reserved, budget) = (1, 1, 1);
    check(
        refused(Shortage::Memory {
            needed,
            reserved,
            budget,
        }),
        "503 host_memory_full",
    );
    check(
        refused(Shortage::Queue { n_waiting: 1 }),
        "503 host_queue_full",
    );
    check(
        refused(Shortage::TooLarge { needed, budget }),
        "502 runtime_too_large",
    );
    check(
        start(StartError::Conflict {
            id: id(),
            is_pending: true,
        }),
        "503 runtime_conflict",
    );
    check(
        start(StartError::Code {
            id: id(),
            source: code,
        }),
        "502 source_missing",
    );
    check(
        start(StartError::Exited {
            id: id(),
            exit: exit(false),
        }),
        "502 runtime_exited",
    );
    check(sandbox(image), "502 image_missing");
    check(sandbox(prepare), "503 host_failed");
}

#[tokio::test]
async fn nobody_is_told_what_the_function_wrote() {
    let broken = gateway(|_| {
        let exit = Exit {
            code: 1,
            out_of_memory: false,
            output: "secret".into(),
        };
        Err(ExecuteError::Exited { id: id(), exit })
    });
    let answer = send(&broken, "GET /hello", &[]).await;
    assert!(
        answer.starts_with("502") && !answer.contains("secret"),
        "{answer}"
    );
}

/// Serves a gateway on a port, until the guard is dropped.
async fn serve(gateway: Gateway) -> (TcpStream, tokio_util::sync::DropGuard) {
    let server = Server::bind(([127, 0, 0, 1], 0).into(), SOON)
        .await
        .unwrap();
    let Address::Tcp(address) = *server.address() else {
        panic!("no port")
    };
    let shutdown = CancellationToken::new();
    let service = move |request| {
        let gateway = gateway.clone();
        async move { gateway.answer(request).await }
    };
    tokio::spawn(server.run(service, shutdown.clone()));
    (
        TcpStream::connect(address).await.unwrap(),
        shutdown.drop_guard(),
    )
}

/// Reads until `end` came.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&read).ends_with(end) {
            let byte = stream.read_u8().await.expect("the connection stays open");
            read.push(byte);
        }
    };
    let ended = timeout(SOON, reading).await;
    assert!(
        ended.is_ok(),
        "no {end:?} in {}",
        String::from_utf8_lossy(&read)
    );
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let (mut stream, _guard) = serve(gateway(echo)).await;
    let head = b"POST /hello HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n";
    stream.write_all(head).await.unwrap();
    read_until(&mut stream, "3\r\none\r\n").await;
    stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut stream, "3\r\ntwo\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_client_that_waits_to_continue_is_told_to() {
    let fake = Fake {
        function: Box::new(echo),
        running: None,
        reads_first: true,
    };
    let (mut stream, _guard) = serve(gateway_of(fake)).await;
    let head =
        b"POST /hello HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head).await.unwrap();
    read_until(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
    stream.write_all(b"one").await.unwrap();
    read_until(&mut stream, "one").await;
}

#[tokio::test]
async fn head_has_no_body() {
    let answering = gateway(|_| Ok(Response::new(text("body"))));
    let (mut stream, _guard) = serve(answering).await;
    let request = b"HEAD /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    assert!(answer.contains("content-length: 4\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_execution() {
    let (sender, mut running) = mpsc::channel(1);
    let fake = Fake {
        function: Box::new(echo),
        running: Some(sender),
        reads_first: false,
    };
    let (mut stream, _guard) = serve(gateway_of(fake)).await;
    stream
        .write_all(b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(timeout(SOON, running.recv()).await, Ok(Some(())));
    assert_eq!(running.sender_strong_count(), 2);
    drop(stream);
    let gone = async {
        while running.sender_strong_count() > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_answers_body() {
    let (sender, receiver) = mpsc::channel::<Result<http_body::Frame<Bytes>, _>>(1);
    let receiver = std::sync::Mutex::new(Some(receiver));
    let endless = gateway(move |_| {
        let receiver = receiver.lock().unwrap().take().unwrap();
        let frames = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
    });
    let (mut stream, _guard) = serve(endless).await;
    stream
        .write_all(b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    sender
        .send(Ok(http_body::Frame::data("first".into())))
        .await
        .unwrap();
    read_until(&mut stream, "first\r\n").await;
    drop(stream);
    timeout(SOON, sender.closed()).await.unwrap();
}
