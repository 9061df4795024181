//! A proxy before a registry that does wrong on purpose.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What is done to one request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The body ends after so many bytes, with the connection.
    Cut(usize),
    /// Some bytes are others, and the body ends after so many, with the connection.
    FlipAndCut(usize),
    /// Some bytes are others.
    Flip,
    /// This status, with `Retry-After` in seconds where given.
    Status(u16, Option<u64>),
    /// `Range` is not passed on.
    IgnoreRange,
    /// More bytes than there are.
    Longer,
    /// Far more bytes than there are.
    Huge,
}

/// A request as the proxy saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) at: std::time::Instant,
}

#[derive(Default)]
struct State {
    /// Faults for the next requests whose path contains the text.
    faults: Vec<(String, VecDeque<Fault>)>,
    seen: Vec<Seen>,
    /// The paths for which the registry's whole answer is here.
    answered: Vec<String>,
    /// Name and password for which the token service gives a token.
    account: Option<(String, String)>,
}

/// Passes requests on to a registry.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

/// The token that lets one in.
const TOKEN: &str = "a-token-of-the-test";

impl Proxy {
    pub(crate) async fn start(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    let service =
                        service_fn(|request| handle(request, address, registry, state.clone()));
                    // A cut body ends the connection with an error, which is the point.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            state,
            task,
        }
    }

    /// The next requests whose path contains `path` meet these faults, one each.
    pub(crate) fn fault(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        let faults = faults.into_iter().collect();
        self.state
            .lock()
            .unwrap()
            .faults
            .push((path.to_owned(), faults));
    }

    /// Asks for a token from now on; only this account gets one.
    pub(crate) fn ask_for_token(&self, username: &str, password: &str) {
        self.state.lock().unwrap().account = Some((username.to_owned(), password.to_owned()));
    }

    /// The requests whose path contains `path`.
    pub(crate) fn seen(&self, path: &str) -> Vec<Seen> {
        let state = self.state.lock().unwrap();
        state
            .seen
            .iter()
            .filter(|seen| seen.path.contains(path))
            .cloned()
            .collect()
    }

    /// Waits until the registry's answer to a request whose path contains `path` is here whole.
    pub(crate) async fn has_answer(&self, path: &str) {
        let is_here = || {
            let state = self.state.lock().unwrap();
            state
                .answered
                .iter()
                .any(|answered| answered.contains(path))
        };
        while !is_here() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = BoxBody<Bytes, std::io::Error>;

async fn handle(
    request: Request<Incoming>,
    own: SocketAddr,
    registry: SocketAddr,
    state: Arc<Mutex<State>>,
) -> Result<Response<Body>, Infallible> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .map(|v| v.to_str().unwrap().to_owned())
    };
    let path = request.uri().path_and_query().unwrap().to_string();
    let seen = Seen {
        path: path.clone(),
        range: header("range"),
        authorization: header("authorization"),
        at: std::time::Instant::now(),
    };
    let (fault, account) = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen.clone());
        let mut faults = state
            .faults
            .iter_mut()
            .filter(|(text, _)| path.contains(text.as_str()));
        let fault = faults.find_map(|(_, faults)| faults.pop_front());
        (fault, state.account.clone())
    };
    let refusal =
        account.and_then(|(username, password)| authorize(&seen, own, &username, &password));
    if let Some(answer) = refusal {
        return Ok(answer);
    }
    if let Some(Fault::Status(status, after)) = fault {
        let mut answer = respond(StatusCode::from_u16(status).unwrap(), "try later");
        if let Some(seconds) = after {
            answer.headers_mut().insert("retry-after", seconds.into());
        }
        return Ok(answer);
    }
    Ok(forward(request, registry, fault, &state).await)
}

/// What a token service and a registry behind it say; `None` lets the request pass.
fn authorize(
    seen: &Seen,
    own: SocketAddr,
    username: &str,
    password: &str,
) -> Option<Response<Body>> {
    use base64::Engine as _;
    let given = seen.authorization.as_deref();
    if seen.path.starts_with("/token") {
        let pair = base64::prelude::BASE64_STANDARD.encode(format!("{username}:{password}"));
        let is_known = given == Some(format!("Basic {pair}").as_str());
        let answer = match is_known && seen.path.contains("scope=repository%3A") {
            true => respond(StatusCode::OK, &format!(r#"{{"token": "{TOKEN}"}}"#)),
            false => respond(StatusCode::UNAUTHORIZED, "no such account"),
        };
        return Some(answer);
    }
    if given == Some(format!("Bearer {TOKEN}").as_str()) {
        return None;
    }
    let mut answer = respond(StatusCode::UNAUTHORIZED, "who are you?");
    let challenge = format!(r#"Bearer realm="http://{own}/token",service="test""#);
    answer
        .headers_mut()
        .insert("www-authenticate", challenge.parse().unwrap());
    Some(answer)
}

async fn forward(
    request: Request<Incoming>,
    registry: SocketAddr,
    fault: Option<Fault>,
    state: &Mutex<State>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let url = format!("http://{registry}{}", request.uri());
    let mut forwarded = reqwest::Client::new().get(url);
    for name in ["accept", "range", "authorization"] {
        let is_kept = name != "range" || fault != Some(Fault::IgnoreRange);
        if let Some(value) = request.headers().get(name).filter(|_| is_kept) {
            forwarded = forwarded.header(name, value);
        }
    }
    let Ok(answer) = forwarded.send().await else {
        return respond(StatusCode::BAD_GATEWAY, "the registry is away");
    };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let bytes = answer.bytes().await.unwrap_or_default().to_vec();
    state.lock().unwrap().answered.push(path);
    let (body, length) = spoil(bytes, fault);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for name in [
        "content-type",
        "content-range",
        "docker-content-digest",
        "www-authenticate",
    ] {
        if let Some(value) = headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
        .headers_mut()
        .insert("content-length", length.into());
    response
}

/// The body with its fault, and the length that the head tells.
fn spoil(mut bytes: Vec<u8>, fault: Option<Fault>) -> (Body, usize) {
    let length = bytes.len();
    let mut ends_well = true;
    match fault {
        Some(Fault::Cut(at) | Fault::FlipAndCut(at)) => {
            bytes.truncate(at);
            if matches!(fault, Some(Fault::FlipAndCut(_))) {
                bytes[at / 2] ^= 0xff;
            }
            ends_well = false;
        }
        Some(Fault::Flip) => bytes
            .iter_mut()
            .skip(length / 2)
            .take(8)
            .for_each(|b| *b ^= 0xff),
        Some(Fault::Huge) => bytes.resize(5 << 20, b' '),
        Some(Fault::Longer) => bytes.extend_from_slice(b"and more"),
        _ => {}
    }
    let length = length.max(bytes.len());
    let pieces = bytes
        .chunks(16 << 10)
        .map(|b| Ok(Frame::data(Bytes::copy_from_slice(b))));
    let mut frames: Vec<Result<_, std::io::Error>> = pieces.collect();
    if !ends_well {
        frames.push(Err(std::io::Error::other("cut")));
    }
    // A pause before the end lets what was sent arrive before the connection breaks.
    let frames = futures_util::stream::unfold(frames.into_iter(), async |mut frames| {
        let frame = frames.next()?;
        if frame.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Some((frame, frames))
    });
    (BodyExt::boxed(StreamBody::new(Box::pin(frames))), length)
}

fn respond(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
