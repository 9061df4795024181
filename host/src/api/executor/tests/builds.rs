use super::*;

#[test]
fn a_build_is_an_instance_of_its_class_with_a_setup() {
    let api = api();
    for version in ["v5", "v2"] {
        let build = format!(
            r#"{{"runtimeId":"{version}","image":"i","command":"make","cacheKey":"k","version":"{version}"}}"#
        );
        assert_eq!(api.send("POST /v1/runtimes", &build).0, 201);
        let creation = api.fake.created.lock().unwrap().pop().unwrap();
        assert_eq!(creation.spec.class.as_str(), "build");
        let idle = ["tail", "-f", "/dev/null"].map(String::from);
        assert_eq!(creation.spec.command.as_deref(), Some(&idle[..]));
        let mounts = creation.setup.unwrap().mounts();
        let targets: Vec<_> = mounts
            .iter()
            .map(|mount| mount.target.to_str().unwrap())
            .collect();
        assert_eq!(targets, ["/cache"]);
    }
}

#[test]
fn a_failed_build_is_told_as_it_failed() {
    #[track_caller]
    fn check(error: StartError, expected: Expect) {
        let api = api();
        *api.fake.failure.lock().unwrap() = Some(error);
        api.check(
            "POST /v1/runtimes",
            r#"{"runtimeId":"a","image":"i","command":"make"}"#,
            expected,
        );
    }
    let id = || InstanceId::try_new("a").unwrap();
    let setup = |source| StartError::Setup { id: id(), source };
    let output = "one\r\nBuild command exited with code 1.".into();
    check(
        setup(SetupError::Failed { output }),
        expect![[
            r#"400 {"type":"build_failed","message":"one\r\nBuild command exited with code 1.","code":400,"version":"1"}"#
        ]],
    );
    check(
        setup(SetupError::Timeout { seconds: 7 }),
        expect![[
            r#"400 {"type":"runtime_failed","message":"the build's command timed out: it did not end within 7 s","code":400,"version":"1"}"#
        ]],
    );
    check(
        setup(SetupError::Artifact {
            source: "no code.tar.gz".into(),
        }),
        expect![[
            r#"500 {"type":"artifact_missing","message":"the build's command ended well, but its result cannot be taken: no code.tar.gz","code":500,"version":"1"}"#
        ]],
    );
    check(
        setup(SetupError::Store {
            source: "disk full".into(),
        }),
        expect![[
            r#"500 {"type":"storage_failed","message":"Internal server error.","code":500,"version":"1"}"#
        ]],
    );
    check(
        setup(SetupError::QueueFull { queue: 256 }),
        expect![[
            r#"503 {"type":"build_queue_full","message":"this node has 256 builds waiting and takes no more","code":503,"version":"1"}"#
        ]],
    );
    check(
        StartError::Deleted { id: id() },
        expect![[
            r#"400 {"type":"build_failed","message":"instance a was deleted while it was being made","code":400,"version":"1"}"#
        ]],
    );
}

#[test]
fn a_command_tells_what_it_wrote_or_why_not() {
    let api = api();
    let check =
        |json: &str, expected: Expect| api.check("POST /v1/runtimes/a/commands", json, expected);
    check(
        "{}",
        expect![[
            r#"400 {"type":"general_unknown","message":"Param \"command\" is not optional.","code":400,"version":"1"}"#
        ]],
    );
    check(
        r#"{"command":"both"}"#,
        expect![[r#"200 {"output":"out�\nerr\n"}"#]],
    );
    check(
        r#"{"command":"sleep","timeout":1}"#,
        expect![[
            r#"500 {"type":"command_timeout","message":"Operation timed out.","code":500,"version":"1"}"#
        ]],
    );
    check(
        r#"{"command":"exit 3"}"#,
        expect![[
            r#"500 {"type":"command_failed","message":"Failed to execute command. It exited with code 3, having written: why","code":500,"version":"1"}"#
        ]],
    );
    check(
        r#"{"command":"absent"}"#,
        expect![[
            r#"404 {"type":"runtime_not_found","message":"Runtime not found","code":404,"version":"1"}"#
        ]],
    );
}

#[tokio::test]
async fn the_log_of_an_instance_is_streamed_and_that_of_none_is_an_error() {
    let api = api();
    api.check(
        "GET /v1/runtimes/a/logs?timeout=1",
        "",
        expect![[r#"500 {"type":"general_unknown","message":"Runtime not ready. Container not found.","code":500,"version":"1"}"#]],
    );
    assert_eq!(api.send("POST /v1/runtimes", CREATE).0, 201);
    let (status, kind, body) = api.send("GET /v1/runtimes/a/logs?timeout=1", "");
    assert_eq!((status, kind.as_str()), (200, "text/event-stream"));
    assert!(body.ends_with(b" one\r\\n\n"), "{body:?}");
    let (status, ..) = api.send("GET /v1/runtimes/a/logs?timeout=12345678901234567", "");
    assert_eq!(status, 400);
}
