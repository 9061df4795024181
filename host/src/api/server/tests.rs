use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
};

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn text(text: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(text.into()).map_err(|never| match never {});
    Response::new(body.boxed_unsync())
}

async fn start<S, F>(service: S, drain: Duration) -> (SocketAddr, CancellationToken, JoinHandle<()>)
where
    S: Fn(Request<Body>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let server = Server::bind(([127, 0, 0, 1], 0).into(), drain)
        .await
        .unwrap();
    let Address::Tcp(address) = *server.address() else {
        panic!("no port")
    };
    let shutdown = CancellationToken::new();
    let run = tokio::spawn(server.run(service, shutdown.clone()));
    (address, shutdown, run)
}

async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

const CLOSE: &str = "GET /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn hands_the_peer_to_the_service() {
    let (address, shutdown, run) = start(
        |request| async move {
            let Peer(peer) = *request.extensions().get::<Peer>().unwrap();
            text(peer.unwrap().to_string())
        },
        SOON,
    )
    .await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let own = stream.local_addr().unwrap().to_string();
    let answer = exchange(&mut stream, CLOSE).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(&own),
        "{answer}"
    );
    shutdown.cancel();
    timeout(SOON, run).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = Server::bind(([127, 0, 0, 1], 0).into(), SOON)
        .await
        .unwrap();
    let Address::Tcp(address) = *first.address() else {
        panic!("no port")
    };
    let error = Server::bind(address, SOON).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{address} is taken by another process")
    );
}

#[tokio::test]
async fn a_request_in_flight_gets_its_answer_at_the_end() {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (seen, release) = (entered.clone(), go.clone());
    let service = move |_| {
        let (entered, go) = (entered.clone(), go.clone());
        async move {
            entered.notify_one();
            go.notified().await;
            text("late")
        }
    };
    let (address, shutdown, run) = start(service, SOON).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    timeout(SOON, seen.notified()).await.unwrap();
    shutdown.cancel();
    release.notify_one();
    let answer = exchange(&mut stream, "").await;
    assert!(answer.ends_with("late"), "{answer}");
    timeout(SOON, run).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_drain_timeout_cuts_off_what_does_not_end() {
    let entered = Arc::new(Notify::new());
    let seen = entered.clone();
    let service = move |_| {
        entered.notify_one();
        std::future::pending()
    };
    let (address, shutdown, run) = start(service, Duration::from_millis(20)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    timeout(SOON, seen.notified()).await.unwrap();
    shutdown.cancel();
    timeout(SOON, run).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_call() {
    struct Told(Arc<AtomicBool>, Arc<Notify>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
            self.1.notify_one();
        }
    }
    let (entered, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let is_gone = Arc::new(AtomicBool::new(false));
    let (seen, left, flag) = (entered.clone(), gone.clone(), is_gone.clone());
    let service = move |_| {
        let told = Told(flag.clone(), gone.clone());
        entered.notify_one();
        async move {
            let _told = told;
            std::future::pending().await
        }
    };
    let (address, _shutdown, _run) = start(service, SOON).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    timeout(SOON, seen.notified()).await.unwrap();
    assert!(!is_gone.load(Ordering::SeqCst));
    drop(stream);
    timeout(SOON, left.notified()).await.unwrap();
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let (address, _shutdown, _run) = start(|_| async { text("no") }, SOON).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(MAX_HEAD + 1));
    let answer = exchange(&mut stream, &request).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_unix_socket_is_its_owners_and_groups_replaces_a_stale_one_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("opr.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a stale socket");

    let server = Server::bind_unix(&path, SOON).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let error = Server::bind_unix(&path, SOON).await.unwrap_err();
    assert!(matches!(error, BindError::Taken { .. }), "{error}");

    let shutdown = CancellationToken::new();
    let service = |request: Request<Body>| async move {
        text(format!("{:?}", request.extensions().get::<Peer>().unwrap()))
    };
    let run = tokio::spawn(server.run(service, shutdown.clone()));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let answer = exchange(&mut stream, CLOSE).await;
    assert!(answer.ends_with("Peer(None)"), "{answer}");
    shutdown.cancel();
    timeout(SOON, run).await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    assert!(Server::bind_unix(&path, SOON).await.is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}
