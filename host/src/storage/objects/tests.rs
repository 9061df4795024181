//! Against an S3 server on a loopback port, which checks signatures, and which does wrong where it is told to.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming as Received},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::AbortHandle};

use super::*;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What is wrong with the answer to a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    Status(u16),
    /// The connection breaks after half of the body.
    Half,
    /// The rest of the body never comes.
    Silence,
    /// One byte is another.
    Flipped,
}

/// An S3 server with one bucket, `bucket`.
struct Server {
    dir: TempDir,
    address: SocketAddr,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    seen: Arc<Mutex<Vec<String>>>,
    accepting: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("s3/bucket")).unwrap();
        let files = s3s_fs::FileSystem::new(dir.path().join("s3")).unwrap();
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single("key", "secret"));
        let service = Arc::new(builder.build());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::<Mutex<VecDeque<Fault>>>::default();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let told = (faults.clone(), seen.clone());
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (service, (faults, seen)) = (service.clone(), told.clone());
                let answer = service_fn(move |request: Request<Received>| {
                    let line = format!("{} {}", request.method(), request.uri());
                    seen.lock().unwrap().push(line);
                    let fault = faults.lock().unwrap().pop_front();
                    answer(service.clone(), request, fault.unwrap_or(Fault::Nothing))
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                // A client that breaks off is not an error.
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        Self {
            dir,
            address,
            faults,
            seen,
            accepting: accepting.abort_handle(),
        }
    }

    /// A device for this server; `place` is what stands between host and parameters.
    fn device(&self, secret: &str, place: &str) -> Device {
        let address = self.address;
        let dsn = format!("s3://key:{secret}@{address}{place}?insecure=true");
        dsn.parse().unwrap()
    }

    fn objects(&self) -> Objects {
        Objects::new(&self.device("secret", "/bucket")).unwrap()
    }

    fn impatient(&self) -> Objects {
        let patience = Duration::from_millis(300);
        Objects::with_patience(&self.device("secret", "/bucket"), patience).unwrap()
    }

    fn will(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults);
    }

    fn n_seen(&self, method: &Method) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .filter(|line| line.starts_with(method.as_str()))
            .count()
    }

    /// A file of this test's own.
    fn file(&self, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join("file");
        fs::write(&path, content).unwrap();
        path
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target/file")
    }

    async fn fetch(&self, objects: &Objects, path: &str) -> Result<Vec<u8>, ObjectError> {
        let target = self.target();
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let fetched = objects.fetch(path, &target, 1 << 30).await;
        let n_files = fs::read_dir(target.parent().unwrap()).unwrap().count();
        assert_eq!(n_files, usize::from(fetched.is_ok()), "{fetched:?}");
        let bytes = fs::read(&target).unwrap_or_default();
        assert_eq!(fetched?.size_bytes, bytes.len() as u64);
        fs::remove_file(&target).unwrap();
        Ok(bytes)
    }
}

async fn answer(
    service: Arc<S3Service>,
    request: Request<Received>,
    fault: Fault,
) -> Result<Response<Body>, Infallible> {
    if let Fault::Status(status) = fault {
        let text = "<Error><Code>SlowDown</Code></Error>";
        let body = Full::from(text).map_err(|never| match never {});
        let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
        return Ok(response.body(body.boxed_unsync()).unwrap());
    }
    let known = request.headers().get("if-none-match").cloned();
    let response = service.call(request.map(s3s::Body::from)).await.unwrap();
    let (mut head, body) = response.into_parts();
    let mut bytes = body.collect().await.unwrap().to_bytes().to_vec();
    if fault == Fault::Flipped {
        bytes[0] ^= 1;
    }
    // The server knows no conditions.
    if known.is_some() && known.as_ref() == head.headers.get("etag") {
        head.status = StatusCode::NOT_MODIFIED;
        head.headers.remove("content-length");
        bytes.clear();
    }
    let rest: Result<Frame<Bytes>, io::Error> = Err(io::ErrorKind::BrokenPipe.into());
    let half = Bytes::copy_from_slice(&bytes[..bytes.len() / 2]);
    let body = match fault {
        Fault::Half => {
            let frames = [Ok(Frame::data(half)), rest];
            StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
        }
        Fault::Silence => {
            let first = futures_util::stream::iter([Ok(Frame::data(half))]);
            let silence = futures_util::stream::pending();
            StreamBody::new(futures_util::StreamExt::chain(first, silence)).boxed_unsync()
        }
        Fault::Nothing | Fault::Flipped | Fault::Status(_) => Full::from(bytes)
            .map_err(|never| match never {})
            .boxed_unsync(),
    };
    Ok(Response::from_parts(head, body))
}

#[tokio::test]
async fn stores_and_fetches_under_both_forms_of_a_path() {
    let server = Server::start().await;
    let objects = server.objects();
    let path = objects.path("/storage/builds/app", "a b+ü.gz");
    assert_eq!(path, "bucket/storage/builds/app/a b+ü.gz");
    let size = objects
        .store(&server.file(b"content"), &path)
        .await
        .unwrap();
    assert_eq!(size, 7);
    for path in [
        "bucket/storage/builds/app/a b+ü.gz",
        "/bucket/storage/builds/app/a b+ü.gz",
        "/storage//builds/./app/a b+ü.gz",
        "storage/builds/other/../app/a b+ü.gz",
    ] {
        let bytes = server.fetch(&objects, path).await.unwrap();
        assert_eq!(bytes, b"content", "{path}");
    }
    let by_host = server.device("secret", "");
    let by_host = Objects::new(&by_host).unwrap();
    let bytes = server.fetch(&by_host, &path).await.unwrap();
    assert_eq!(bytes, b"content");
}

#[tokio::test]
async fn a_large_file_goes_in_parts() {
    let server = Server::start().await;
    let objects = server.objects();
    let content: Vec<u8> = (0..20 << 20).map(|n: u32| (n >> 8) as u8).collect();
    let size = objects
        .store(&server.file(&content), "/large")
        .await
        .unwrap();
    assert_eq!(size, content.len() as u64);
    assert_eq!(server.n_seen(&Method::PUT), 3);
    let bytes = server.fetch(&objects, "/large").await.unwrap();
    assert!(bytes == content);
}

#[tokio::test]
async fn a_large_file_that_is_not_all_there_is_taken_back() {
    let server = Server::start().await;
    let objects = server.objects();
    let first = [Fault::Nothing; 2];
    server.will(&[&first[..], &[Fault::Status(503); 4]].concat());
    let file = server.file(&vec![7; 20 << 20]);
    let error = objects.store(&file, "/large").await.unwrap_err();
    assert!(
        matches!(error, ObjectError::Remote { what: "write", .. }),
        "{error}"
    );
    assert_eq!(server.n_seen(&Method::DELETE), 1);
    let error = server.fetch(&objects, "/large").await.unwrap_err();
    assert!(matches!(error, ObjectError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn says_why_a_file_cannot_be_had() {
    let server = Server::start().await;
    let objects = server.objects();
    let error = server.fetch(&objects, "/none").await.unwrap_err();
    assert_eq!(error.to_string(), "/none is not in the storage");
    objects.store(&server.file(b"content"), "/a").await.unwrap();
    let small = objects.fetch("/a", &server.dir.path().join("b"), 6).await;
    assert_eq!(small.unwrap_err().to_string(), "/a has more than 6 bytes");
    let wrong = Objects::new(&server.device("wrong", "/bucket")).unwrap();
    let error = server.fetch(&wrong, "/a").await.unwrap_err();
    let text = format!("{:#}", anyhow::Error::new(error));
    assert!(
        text.contains("could not read /a: ") && text.contains("SignatureDoesNotMatch"),
        "{text}"
    );
}

#[tokio::test]
async fn is_told_of_a_version_that_it_knows() {
    let server = Server::start().await;
    let objects = server.objects();
    objects.store(&server.file(b"one"), "/a").await.unwrap();
    let target = server.dir.path().join("b");
    let fetched = objects.fetch("/a", &target, 9).await.unwrap();
    let known = Some(fetched.version.as_str());
    let again = objects.fetch_newer("/a", &target, 9, known).await;
    assert_eq!(again.unwrap(), None);
    objects.store(&server.file(b"two"), "/a").await.unwrap();
    let newer = objects.fetch_newer("/a", &target, 9, known).await.unwrap();
    assert_ne!(newer.unwrap().digest, fetched.digest);
}

#[tokio::test]
async fn repeats_what_the_server_has_no_time_for_three_times() {
    let server = Server::start().await;
    let objects = server.objects();
    objects.store(&server.file(b"content"), "/a").await.unwrap();
    server.will(&[Fault::Status(503), Fault::Status(429)]);
    let bytes = server.fetch(&objects, "/a").await.unwrap();
    assert_eq!(bytes, b"content");
    server.will(&[Fault::Status(503)]);
    objects.store(&server.file(b"newer"), "/a").await.unwrap();
    server.will(&[Fault::Status(503); 4]);
    let before = server.n_seen(&Method::GET);
    let error = server.fetch(&objects, "/a").await.unwrap_err();
    let text = format!("{:#}", anyhow::Error::new(error));
    assert!(text.contains("503") && text.contains("SlowDown"), "{text}");
    assert_eq!(server.n_seen(&Method::GET) - before, 4);
}

#[tokio::test]
async fn goes_on_where_an_answer_broke_off() {
    let server = Server::start().await;
    let objects = server.objects();
    let content = vec![7; 1 << 20];
    objects.store(&server.file(&content), "/a").await.unwrap();
    server.will(&[Fault::Half]);
    let bytes = server.fetch(&objects, "/a").await.unwrap();
    assert!(bytes == content);
}

#[tokio::test]
async fn what_is_not_what_was_stored_is_refused() {
    let server = Server::start().await;
    let objects = server.objects();
    objects.store(&server.file(b"content"), "/a").await.unwrap();
    server.will(&[Fault::Flipped]);
    let error = server.fetch(&objects, "/a").await.unwrap_err();
    assert!(matches!(error, ObjectError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_silent_server_is_not_waited_for_without_end() {
    let server = Server::start().await;
    server
        .objects()
        .store(&server.file(b"content"), "/a")
        .await
        .unwrap();
    server.will(&[Fault::Silence]);
    let error = server.fetch(&server.impatient(), "/a").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the storage was silent about /a for 0.3 s"
    );
}

fn local() -> (TempDir, Objects) {
    (
        TempDir::new().unwrap(),
        Objects::new(&Device::Local).unwrap(),
    )
}

#[tokio::test]
async fn on_this_machine_paths_are_files() {
    let (dir, objects) = local();
    let root = dir.path().display();
    let path = objects.path(&format!("{root}//builds/./x/.."), "a.gz");
    assert_eq!(path, format!("{root}/builds/a.gz"));
    let from = dir.path().join("from");
    fs::write(&from, "content").unwrap();
    assert_eq!(objects.store(&from, &path).await.unwrap(), 7);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    let to = dir.path().join("to");
    let fetched = objects.fetch(&path, &to, 7).await.unwrap();
    assert_eq!(
        (fetched.size_bytes, fs::read(&to).unwrap()),
        (7, b"content".to_vec())
    );
    let small = objects.fetch(&path, &to, 6).await.unwrap_err();
    assert!(matches!(small, ObjectError::TooLarge { .. }), "{small}");
}

#[tokio::test]
async fn only_regular_files_are_fetched() {
    let (dir, objects) = local();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    for (path, expected) in [
        (dir.path().to_owned(), "is no regular file"),
        (fifo, "is no regular file"),
        (dir.path().join("none"), "is not in the storage"),
        (dir.path().join("none/none"), "is not in the storage"),
    ] {
        let path = path.display().to_string();
        let error = objects
            .fetch(&path, &dir.path().join("to"), 1)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), format!("{path} {expected}"));
        assert!(error.is_missing());
    }
}
