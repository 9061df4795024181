//! Sources in a bucket, images of a registry that wants a login.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use serde_json::json;

use crate::node::Node;

const CODE: &str = "module.exports = ({ res }) => res.text('from a bucket');";

/// Serves the folders in `root` as buckets, for as long as the test's process lives.
fn serve_s3(root: &Path) -> Result<SocketAddr> {
    let files = s3s_fs::FileSystem::new(root).expect("a folder");
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single("key", "secret"));
    let service = builder.build().into_shared();
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
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
                tokio::spawn(connection);
            }
        });
    });
    Ok(address)
}

#[test]
fn a_source_comes_from_a_bucket() -> Result<()> {
    if !crate::can_run() {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    fs::create_dir_all(root.path().join("bucket/storage"))?;
    let address = serve_s3(root.path())?;
    let node = Node::start_with(&format!(
        "[storage]\ndsn = 's3://key:secret@{address}/bucket?region=us-east-1&insecure=true'"
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
    let kept = fs::read_dir(node.dir().join("state/sources"))?.count();
    assert_eq!(kept, 1, "one content is kept once");
    let call = json!({"image": crate::IMAGE, "source": "/storage/none.tar.gz"});
    let answer = node.api("POST", "/v1/runtimes/none/executions", &call)?;
    assert_eq!(answer.json()["type"], "source_missing", "{}", answer.text());
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
