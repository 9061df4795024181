//! Sources in a bucket, images of a registry that wants a login.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use s3s::{
    S3Result,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use serde_json::json;

use crate::node::Node;

const CODE: &str = "module.exports = ({ res }) => res.text('from a bucket');";

/// A server of buckets that makes it hard for its clients.
#[derive(Debug, Default)]
struct Trouble {
    /// How long each answer takes.
    pause: Duration,
    /// It has no time for one request in so many; 0 has time for all.
    busy_every: usize,
    n_requests: AtomicUsize,
    n_refused: AtomicUsize,
}

impl Trouble {
    async fn answer(
        &self,
        service: &S3Service,
        request: Request<Incoming>,
    ) -> S3Result<Response<s3s::Body>> {
        let n = self.n_requests.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(self.pause).await;
        if n.is_multiple_of(self.busy_every) {
            self.n_refused.fetch_add(1, Ordering::SeqCst);
            // All of the request is read, so that the answer is not lost with the connection.
            drop(request.into_body().collect().await);
            let text = "<Error><Code>SlowDown</Code></Error>".to_owned();
            let mut response = Response::new(s3s::Body::from(text));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Ok(response);
        }
        service.call(request.map(s3s::Body::from)).await
    }
}

/// Serves the folders in `root` as buckets, for as long as the test's process lives.
fn serve_s3(root: &Path, trouble: &Arc<Trouble>) -> Result<SocketAddr> {
    let files = s3s_fs::FileSystem::new(root).expect("a folder");
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single("key", "secret"));
    let (service, trouble) = (Arc::new(builder.build()), trouble.clone());
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it is bound");
            while let Ok((stream, _)) = listener.accept().await {
                let (service, trouble) = (service.clone(), trouble.clone());
                let answer = service_fn(move |request| {
                    let (service, trouble) = (service.clone(), trouble.clone());
                    async move { trouble.answer(&service, request).await }
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(connection);
            }
        });
    });
    Ok(address)
}

/// Whether the node has one content in a folder where contents are named by their digests.
fn ensure_kept_once(node: &Node, folder: &str) -> Result<()> {
    let names = fs::read_dir(node.dir().join(folder))?.map(|entry| Ok(entry?.file_name()));
    let mut names: Vec<_> = names.collect::<Result<_>>()?;
    names.retain(|name| name.len() == 64);
    ensure!(names.len() == 1, "{folder} has {names:?}");
    Ok(())
}

#[test]
fn sources_results_and_caches_are_in_buckets_whose_servers_are_busy_or_slow() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    fs::create_dir_all(root.path().join("bucket/storage"))?;
    fs::create_dir_all(root.path().join("caches"))?;
    let busy = Arc::new(Trouble {
        busy_every: 2,
        ..Trouble::default()
    });
    let slow = Arc::new(Trouble {
        pause: Duration::from_millis(500),
        ..Trouble::default()
    });
    let dsn = |trouble: &Arc<Trouble>, bucket: &str| -> Result<String> {
        let address = serve_s3(root.path(), trouble)?;
        let parameters = "region=us-east-1&insecure=true";
        Ok(format!("'s3://key:secret@{address}/{bucket}?{parameters}'"))
    };
    let node = Node::start_with(&format!(
        "[storage]\ndsn = {}\nbuild_cache_dsn = {}",
        dsn(&busy, "bucket")?,
        dsn(&slow, "caches")?
    ))?;
    node.import_runtime("node")?;
    fs::copy(
        node.archive(CODE)?,
        root.path().join("bucket/storage/code.tar.gz"),
    )?;
    for (id, source) in [
        ("with", "bucket/storage/code.tar.gz"),
        ("without", "/storage/code.tar.gz"),
    ] {
        let call = json!({
            "image": crate::IMAGE, "source": source, "entrypoint": "index.js",
            "runtimeEntrypoint": crate::START, "timeout": 45,
        });
        let answer = node.api("POST", &format!("/v1/runtimes/{id}/executions"), &call)?;
        assert_eq!(answer.status, 200, "{}\n{}", answer.text(), node.log());
        assert_eq!(answer.json()["body"], "from a bucket");
    }
    ensure_kept_once(&node, "state/sources")?;
    ensure_kept_once(&node, "state/sources/code")?;

    for (id, cached) in [("miss", ""), ("hit", "cached")] {
        builds_and_executes(&node, root.path(), id, cached)?;
    }
    let cache = root
        .path()
        .join("caches/build-cache/key/lz4-b1M/stores.sqfs");
    assert_eq!(fs::read(cache)?, b"cached");
    let n_refused = busy.n_refused.load(Ordering::SeqCst);
    assert!(n_refused > 0, "the busy server was not asked");
    assert!(slow.n_requests.load(Ordering::SeqCst) > 0);
    let call = json!({"image": crate::IMAGE, "source": "/storage/none.tar.gz"});
    let answer = node.api("POST", "/v1/runtimes/none/executions", &call)?;
    assert_eq!(answer.json()["type"], "source_missing", "{}", answer.text());
    Ok(())
}

/// A build with source, result and cache in buckets, which finds `cached`, and an execution of its result.
fn builds_and_executes(node: &Node, root: &Path, id: &str, cached: &str) -> Result<()> {
    let command = "cat /cache/stores.sqfs 2>&-; printf cached > /cache/stores.sqfs; \
        cp /tmp/code.tar.gz /mnt/code/";
    let order = json!({
        "runtimeId": id, "image": crate::IMAGE, "source": "/storage/code.tar.gz",
        "destination": "/storage/builds", "command": command, "cacheKey": "key", "remove": true,
    });
    let built = node.api("POST", "/v1/runtimes", &order)?;
    assert_eq!(built.status, 201, "{}\n{}", built.text(), node.log());
    let built = built.json();
    let output = built["output"][0]["content"].as_str().unwrap_or_default();
    assert_eq!(output, cached, "{id}: {built}");
    let path = built["path"].as_str().unwrap_or_default();
    assert!(path.starts_with("bucket/storage/builds/"), "{path}");
    let source = fs::read(root.join("bucket/storage/code.tar.gz"))?;
    assert!(fs::read(root.join(path))? == source, "{path}");
    let call = json!({
        "image": crate::IMAGE, "source": path, "entrypoint": "index.js",
        "runtimeEntrypoint": crate::START, "timeout": 45,
    });
    let answer = node.api("POST", &format!("/v1/runtimes/{id}/executions"), &call)?;
    assert_eq!(answer.json()["body"], "from a bucket", "{}", answer.text());
    Ok(())
}

/// A registry that has nothing and wants a login; tells the `authorization` of each request.
fn serve_registry() -> Result<(SocketAddr, mpsc::Receiver<String>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let (sender, seen) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut authorization = String::new();
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            for line in lines.take_while(|line| !line.is_empty()) {
                if let Some((name, value)) = line.split_once(": ")
                    && name.eq_ignore_ascii_case("authorization")
                {
                    value.clone_into(&mut authorization);
                }
            }
            let status = if authorization.is_empty() {
                "401 Unauthorized\r\nwww-authenticate: Basic realm=\"test\""
            } else {
                "404 Not Found"
            };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            // A client that went away is not an error.
            let _ = (&stream).write_all(answer.as_bytes());
            if !authorization.is_empty() && sender.send(authorization).is_err() {
                return;
            }
        }
    });
    Ok((address, seen))
}

#[test]
fn images_are_pulled_at_the_start_with_the_login_of_their_registry() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let (registry, seen) = serve_registry()?;
    let node = Node::start_with(&format!(
        "[pull]\nimages = ['{registry}/private/app:1', 'no image']\n\
         [registry.'{registry}']\nuser = 'me'\npassword = 'hush'"
    ))?;
    let authorization = seen.recv_timeout(Duration::from_secs(30))?;
    assert_eq!(
        authorization,
        format!("Basic {}", STANDARD.encode("me:hush"))
    );
    assert!(!node.log().contains("hush"));
    Ok(())
}
