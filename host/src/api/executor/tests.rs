use std::{sync::Mutex, time::Duration};

use bytes::Bytes;
use expect_test::{Expect, expect};
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use tokio::sync::oneshot;

use super::*;
use crate::{
    executor::{
        command::CommandError,
        execution::{Answer, ExecuteError, Execution, Exit, Logs, Phases, Start, StartError},
        instance::{InstanceInfo, Protocol},
        setup::SetupError,
        transcript::{Reader, Transcript},
    },
    id::ClassName,
    storage::objects::Objects,
};

mod builds;

/// Remembers what it was asked and answers as told.
#[derive(Default)]
struct Fake {
    infos: Mutex<Vec<InstanceInfo>>,
    created: Mutex<Vec<Creation>>,
    failure: Mutex<Option<StartError>>,
    executed: Mutex<Vec<Execution>>,
    answer: Mutex<Option<Result<Response<Body>, ExecuteError>>>,
}

fn info(id: &InstanceId) -> InstanceInfo {
    InstanceInfo {
        id: id.clone(),
        function: None,
        class: ClassName::try_new("runtime").unwrap(),
        image: "docker.io/openruntimes/node:v5-22".into(),
        protocol: Protocol::V5,
        hostname: "0123456789abcdef0123456789abcdef".into(),
        key: "secret-of-it".into(),
        created: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
        updated: SystemTime::UNIX_EPOCH + Duration::from_secs(2),
        start_duration: Some(Duration::from_millis(1_234)),
        is_listening: true,
        n_executions: 0,
        n_admitted: 0,
    }
}

#[async_trait::async_trait]
impl Instances for Fake {
    async fn create(&self, creation: Creation) -> Result<InstanceInfo, Arc<StartError>> {
        let spec = creation.spec.clone();
        let id = spec.id.clone();
        if self.get(&id).is_some() {
            let is_pending = false;
            return Err(Arc::new(StartError::Conflict { id, is_pending }));
        }
        if let Some(error) = self.failure.lock().unwrap().take() {
            return Err(Arc::new(error));
        }
        if !creation.is_removed {
            self.infos.lock().unwrap().push(info(&id));
        }
        self.created.lock().unwrap().push(creation);
        Ok(info(&id))
    }

    async fn command(
        &self,
        id: &InstanceId,
        line: &str,
        timeout: Option<Duration>,
    ) -> Result<Written, CommandError> {
        let seconds = timeout.map_or(0, |timeout| timeout.as_secs());
        let id = id.clone();
        match line {
            "both" => Ok(Written {
                stdout: b"out\xff\n".to_vec(),
                stderr: b"err\n".to_vec(),
            }),
            "sleep" => Err(CommandError::Timeout { id, seconds }),
            "exit 3" => {
                let output = "why".into();
                let out_of_memory = false;
                let exit = Exit {
                    code: 3,
                    out_of_memory,
                    output,
                };
                Err(CommandError::Failed { id, exit })
            }
            _ => Err(CommandError::NotFound { id }),
        }
    }

    async fn follow(&self, id: &InstanceId) -> Option<Reader> {
        self.get(id)?;
        let transcript = Arc::new(Transcript::of_command());
        transcript.push(b"one\r\n");
        transcript.close();
        Some(transcript.follow())
    }

    async fn execute(&self, execution: Execution) -> Result<Answer, ExecuteError> {
        let id = execution.instance.clone();
        self.executed.lock().unwrap().push(execution);
        let answer = self.answer.lock().unwrap().take();
        let response = answer.unwrap_or(Err(ExecuteError::NotFound { id }))?;
        let (sender, logs) = oneshot::channel();
        let told = Logs {
            logs: b"log".to_vec(),
            errors: b"error".to_vec(),
        };
        sender.send(told).unwrap();
        Ok(Answer {
            response,
            start: Start::Cold,
            phases: Phases::default(),
            start_time: SystemTime::UNIX_EPOCH,
            began: Instant::now(),
            logs,
        })
    }

    fn list(&self) -> Vec<InstanceInfo> {
        self.infos.lock().unwrap().clone()
    }

    fn get(&self, id: &InstanceId) -> Option<InstanceInfo> {
        self.list().into_iter().find(|info| info.id == *id)
    }

    async fn delete(&self, id: &InstanceId) -> bool {
        let mut infos = self.infos.lock().unwrap();
        let before = infos.len();
        infos.retain(|info| info.id != *id);
        infos.len() < before
    }
}

struct Api {
    fake: Arc<Fake>,
    api: ExecutorApi,
    _dir: tempfile::TempDir,
}

fn api() -> Api {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config {
        hostname: "executor".into(),
        state_dir: dir.path().into(),
        ..Config::default()
    };
    config.executor.secret = "hush".into();
    config.executor.version = "1".into();
    config.executor.runtime_versions = vec!["v2".into(), "v5".into()];
    let fake = Arc::new(Fake::default());
    let objects = Objects::new(&config.storage.device).unwrap();
    let builds = ClientBuilds::new(&config, objects.clone(), objects).unwrap();
    let api = ExecutorApi::new(Arc::new(config), fake.clone(), builds, || "up 1\n".into());
    Api {
        fake,
        api,
        _dir: dir,
    }
}

fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

impl Api {
    /// Sends a request with the key and a JSON body; answers status, content type and body.
    fn send(&self, line: &str, json: &str) -> (u16, String, Bytes) {
        let head = [
            ("authorization", "Bearer hush"),
            ("content-type", "application/json"),
        ];
        self.send_with(line, &head, json.to_owned())
    }

    fn send_with(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        content: impl Into<Bytes>,
    ) -> (u16, String, Bytes) {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body(content)).unwrap();
        let response = self.api.answer(request).now_or_never().unwrap();
        let (head, body) = response.into_parts();
        assert_eq!(head.headers["server"], "Executor");
        let kind = head.headers.get("content-type");
        let kind = kind.map_or("", |value| value.to_str().unwrap()).to_owned();
        let body = body.collect().now_or_never().unwrap().unwrap();
        (head.status.as_u16(), kind, body.to_bytes())
    }

    #[track_caller]
    fn check(&self, line: &str, json: &str, expected: Expect) {
        let (status, _, body) = self.send(line, json);
        expected.assert_eq(&format!("{status} {}", String::from_utf8_lossy(&body)));
    }

    fn will_answer(&self, response: Response<Body>) {
        *self.fake.answer.lock().unwrap() = Some(Ok(response));
    }

    fn last_execution(&self) -> Execution {
        self.fake.executed.lock().unwrap().pop().unwrap()
    }
}

const CREATE: &str = r#"{"runtimeId":"a","image":"openruntimes/node:v5-22","workdir":"/x"}"#;

#[test]
fn the_key_is_the_second_word() {
    #[track_caller]
    fn check(value: &str, secret: &str, expected: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        assert_eq!(is_authorized(&headers, secret), expected, "{value:?}");
    }
    assert!(!is_authorized(&HeaderMap::new(), ""));
    check("Bearer hush", "hush", true);
    check("x hush more", "hush", true);
    check("hush", "hush", false);
    check("Bearer  hush", "hush", false);
    check("Bearer hushh", "hush", false);
    check("Bearer ", "", false);
    check("Bearer 0", "0", false);
}

#[test]
fn all_but_health_and_metrics_need_the_key() {
    let api = api();
    for line in [
        "GET /v1/runtimes",
        "POST /v1/runtimes",
        "GET /v1/runtimes/a",
        "DELETE /v1/runtimes/a",
        "POST /v1/runtimes/a/execution",
        "GET /v1/runtimes/a/logs",
        "POST /v1/runtimes/a/commands",
    ] {
        let (status, _, body) = api.send_with(line, &[("authorization", "Bearer ")], "");
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(status, 401, "{line}");
        assert!(
            text.contains("\"general_unauthorized\",\"message\":\"Missing executor key\""),
            "{text}"
        );
    }
    let text = "text/plain; charset=UTF-8".to_owned();
    assert_eq!(
        api.send_with("GET /v1/health", &[], ""),
        (200, text.clone(), "OK".into())
    );
    assert_eq!(
        api.send_with("GET /metrics", &[], ""),
        (200, text, "up 1\n".into())
    );
}

#[test]
fn unknown_routes_and_runtimes_are_told() {
    let api = api();
    api.check(
        "GET /v1/unknown",
        "",
        expect![[r#"404 {"type":"general_route_not_found","message":"Not Found","code":404,"version":"1"}"#]],
    );
    let absent = || {
        expect![[
            r#"404 {"type":"runtime_not_found","message":"Runtime not found","code":404,"version":"1"}"#
        ]]
    };
    api.check("GET /v1/runtimes/id", "", absent());
    api.check("DELETE /v1/runtimes/test", "", absent());
    api.check("GET /v1/runtimes", "", expect!["200 []"]);
    api.check("OPTIONS /v1/runtimes", "", expect!["200 "]);
    api.check(
        "GET /v1/runtimes/..",
        "",
        expect![[r#"400 {"type":"execution_bad_request","message":"runtimeId \"..\" is not valid: it starts with a letter or digit, holds only letters, digits, `.`, `_` and `-`, and is at most 64 characters long","code":400,"version":"1"}"#]],
    );
    api.check(
        &format!("GET /v1/runtimes/{}", "a".repeat(65)),
        "",
        expect![[r#"400 {"type":"general_unknown","message":"Invalid `runtimeId` param: Value must be a valid string and at least 1 chars and no longer than 64 chars","code":400,"version":"1"}"#]],
    );
}

#[test]
fn an_instance_is_made_told_and_deleted() {
    let api = api();
    let (status, kind, body) = api.send("POST /v1/runtimes", CREATE);
    assert_eq!(
        (status, kind.as_str()),
        (201, "application/json; charset=UTF-8")
    );
    let created: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(created["output"], serde_json::json!([]));
    assert!(
        created["startTime"].is_f64() && created["duration"].is_f64(),
        "{created}"
    );
    api.check(
        "GET /v1/runtimes/a",
        "",
        expect![[r#"200 {"version":"v5","created":1.5,"updated":2.0,"name":"executor-a","hostname":"0123456789abcdef0123456789abcdef","status":"Up 1.23s","key":"","listening":1,"image":"openruntimes/node:v5-22","initialised":1}"#]],
    );
    api.check(
        "POST /v1/runtimes",
        CREATE,
        expect![[r#"409 {"type":"runtime_conflict","message":"Runtime already exists ","code":409,"version":"1"}"#]],
    );
    let mut health: serde_json::Value =
        serde_json::from_slice(&api.send("GET /v1/health", "").2).unwrap();
    let usage = health["usage"].take();
    assert!(usage.is_null() || usage.is_f64(), "{usage}");
    let told = r#"{"status":"pass","usage":null,"runtimes":{"a":{"status":"pass"}}}"#;
    assert_eq!(health.to_string(), told);
    api.check("DELETE /v1/runtimes/a", "", expect!["200 "]);
    api.check("GET /v1/runtimes", "", expect!["200 []"]);
}

#[test]
fn a_creation_reads_its_parameters() {
    let api = api();
    let full = r#"{"runtimeId":"a","image":"openruntimes/node:v5-22","entrypoint":"index.js","source":"/code.tar.gz",
        "outputDirectory":"./dist","variables":{"CI":"no","A":1},"runtimeEntrypoint":"run","cpus":"2.5","memory":1024,
        "version":"V5","restartPolicy":"always","keepAlive":300,"remove":true}"#;
    assert_eq!(api.send("POST /v1/runtimes", full).0, 201);
    let creation = api.fake.created.lock().unwrap().pop().unwrap();
    assert!(creation.is_removed && creation.setup.is_none());
    let spec = creation.spec;
    expect![[r#"
        InstanceSpec {
            id: InstanceId(
                "a",
            ),
            function: None,
            class: ClassName(
                "runtime",
            ),
            image: Reference {
                registry: "docker.io",
                repository: "openruntimes/node",
                tag: Some(
                    "v5-22",
                ),
                digest: None,
            },
            protocol: V5,
            command: Some(
                [
                    "bash",
                    "-c",
                    "run",
                ],
            ),
            entrypoint: "index.js",
            variables: {
                "A": "1",
                "CI": "true",
                "OPEN_RUNTIMES_OUTPUT_DIRECTORY": "./dist",
            },
            code: Archive(
                "/code.tar.gz",
            ),
            limits: Limits {
                cpus: 2.5,
                memory_bytes: 1024000000,
            },
            restart: Always,
            keep_alive: Some(
                300s,
            ),
        }
    "#]]
    .assert_debug_eq(&spec);
}

#[test]
fn a_creation_refuses_what_it_cannot_use() {
    let api = api();
    api.check(
        "POST /v1/runtimes",
        "{}",
        expect![[r#"400 {"type":"general_unknown","message":"Param \"runtimeId\" is not optional.","code":400,"version":"1"}"#]],
    );
    api.check(
        "POST /v1/runtimes",
        r#"{"runtimeId":"a","image":"i","version":"v3"}"#,
        expect![[r#"400 {"type":"general_unknown","message":"Invalid `version` param: Value must be one of (v2, v5)","code":400,"version":"1"}"#]],
    );
    api.check(
        "POST /v1/runtimes",
        r#"{"runtimeId":"a","image":"i","cacheKey":".."}"#,
        expect![[r#"400 {"type":"execution_bad_request","message":"Cache key must start with a letter or number and may only contain letters, numbers, dots, underscores, and hyphens.","code":400,"version":"1"}"#]],
    );
}

fn answered(status: u16, content: &'static [u8]) -> Response<Body> {
    let mut response = Response::new(body(content));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

#[test]
fn an_execution_without_an_instance_or_its_parts_is_not_found() {
    api().check(
        "POST /v1/runtimes/a/executions",
        r#"{"image":"i"}"#,
        expect![[r#"404 {"type":"runtime_not_found","message":"Runtime not found. Please start it first or provide runtime-related parameters.","code":404,"version":"1"}"#]],
    );
}

#[test]
fn an_execution_describes_a_request() {
    let api = api();
    api.will_answer(answered(200, b""));
    let sent = r#"{"runtimeId":"other","body":"0","path":"v1/users?a=b","method":"POST","timeout":"45","logging":"false",
        "headers":"{\"Host\":\"cloud\",\"Content-Length\":\"9\"}","image":"openruntimes/node:v5-22","source":"/c"}"#;
    assert_eq!(api.send("POST /v1/runtimes/a/executions", sent).0, 200);
    let execution = api.last_execution();
    assert_eq!(execution.instance.as_str(), "a");
    assert_eq!(execution.timeout, Duration::from_secs(45));
    assert!(!execution.logging);
    let spec = execution.spec.unwrap();
    assert_eq!(spec.variables["INERNAL_EXECUTOR_HOSTNAME"], "executor");
    let (head, body) = execution.request.into_parts();
    assert_eq!(
        (head.method.as_str(), head.uri.to_string().as_str()),
        ("POST", "/v1/users?a=b")
    );
    expect![[r#"
        {
            "host": "cloud",
            "accept": "*/*",
            "content-type": "application/x-www-form-urlencoded",
        }
    "#]]
    .assert_debug_eq(&head.headers);
    assert_eq!(
        body.collect().now_or_never().unwrap().unwrap().to_bytes(),
        "0"
    );
}

#[test]
fn an_execution_by_multipart_keeps_binary_both_ways() {
    let api = api();
    api.will_answer(answered(201, &[0, 10, 255]));
    let mut form = b"--x\r\nContent-Disposition: form-data; name=\"body\"\r\n\r\n".to_vec();
    form.extend_from_slice(&[0, 10, 255]);
    form.extend_from_slice(
        b"\r\n--x\r\nContent-Disposition: form-data; name=\"logging\"\r\n\r\n0\r\n--x--\r\n",
    );
    let head = [
        ("authorization", "Bearer hush"),
        ("content-type", "multipart/form-data; boundary=x"),
        ("accept", "multipart/form-data"),
    ];
    let (status, kind, body) = api.send_with("POST /v1/runtimes/a/executions", &head, form);
    assert_eq!(status, 200);
    assert!(
        kind.starts_with("multipart/form-data; boundary=-----------------------------"),
        "{kind}"
    );
    let has = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
    assert!(has(b"name=\"statusCode\"\r\n\r\n201\r\n"));
    assert!(has(b"name=\"body\"\r\n\r\n\x00\x0a\xff\r\n"));
    let execution = api.last_execution();
    assert!(!execution.logging);
    let sent = execution
        .request
        .into_body()
        .collect()
        .now_or_never()
        .unwrap()
        .unwrap();
    assert_eq!(sent.to_bytes(), [0, 10, 255].as_slice());
}

#[test]
fn the_result_is_json_where_that_is_asked_for() {
    let api = api();
    let head = [
        ("authorization", "Bearer hush"),
        ("accept", "text/plain, application/json"),
    ];
    api.will_answer(answered(500, b"sorry"));
    let (status, kind, body) = api.send_with("POST /v1/runtimes/a/executions", &head, "");
    assert_eq!((status, kind.as_str()), (200, "application/json"));
    let result: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(result["statusCode"], 500);
    assert_eq!(result["body"], "sorry");
    assert_eq!(
        (result["logs"].as_str(), result["errors"].as_str()),
        (Some("log"), Some("error"))
    );
    api.will_answer(answered(200, &[0, 10, 255]));
    let (status, _, body) = api.send_with("POST /v1/runtimes/a/executions", &head, "");
    assert_eq!(status, 400);
    assert!(String::from_utf8_lossy(&body).contains("JSON response does not allow binaries"));
}

#[test]
fn an_execution_refuses_what_it_cannot_use() {
    #[track_caller]
    fn check(json: &str, expected: &str) {
        let (status, _, body) = api().send("POST /v1/runtimes/a/executions", json);
        let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let kind = answer["type"].as_str().unwrap();
        let shown = format!("{status} {kind}: {}", answer["message"].as_str().unwrap());
        assert_eq!(shown, expected, "{json}");
    }
    check(
        r#"{"timeout":0}"#,
        "400 runtime_timeout: Timed out waiting for runtime. It is still being started.",
    );
    check(
        r#"{"timeout":-1}"#,
        "400 runtime_timeout: Timed out waiting for runtime. It is still being started.",
    );
    check(
        r#"{"headers":null}"#,
        "400 execution_bad_request: Value must be a valid object.",
    );
    check(
        r#"{"headers":{"a":"b\nc"}}"#,
        "400 execution_bad_request: Header \"a\" is no valid header.",
    );
    check(
        r#"{"body":""}"#,
        "400 general_unknown: Invalid `body` param: Value must be a valid string and at least 1 chars and no longer than 20971520 chars",
    );
    check(
        r#"{"method":"get"}"#,
        "400 general_unknown: Invalid `method` param: Value must be one of (GET, POST, PUT, PATCH, DELETE, OPTIONS, HEAD)",
    );
}

#[test]
fn an_instance_that_is_there_needs_no_valid_image() {
    let api = api();
    let sent = r#"{"image":"no image","source":"/c"}"#;
    assert_eq!(api.send("POST /v1/runtimes/a/executions", sent).0, 400);
    assert_eq!(api.send("POST /v1/runtimes", CREATE).0, 201);
    api.will_answer(answered(200, b""));
    assert_eq!(api.send("POST /v1/runtimes/a/executions", sent).0, 200);
    assert_eq!(api.last_execution().spec, None);
}
