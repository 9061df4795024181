//! Requests to the daemon, over its unix socket, and to the gateway.

use std::{io, path::PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

use crate::{
    api::node::wire::{ErrorAnswer, NodeInfo},
    config::Config,
    executor::execution::Body,
};

/// What was named does not exist.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Missing(pub(super) String);

/// The daemon does not answer.
#[derive(Debug, thiserror::Error)]
#[error("no node answers on {}: start one with `opr up`, or as the service", socket.display())]
pub(super) struct Unreachable {
    pub(super) socket: PathBuf,
}

/// The daemon's own API.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            socket: config.node_socket(),
        }
    }

    pub(super) async fn node(&self) -> anyhow::Result<NodeInfo> {
        self.get("/v1/node").await
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self.send(request(Method::GET, path, empty())).await?;
        let bytes = answer.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&bytes).context("the node's answer is not understood")
    }

    /// Sends a request; an answer that is a failure is an error.
    pub(super) async fn send(&self, request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        let stream = match UnixStream::connect(&self.socket).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let socket = self.socket.display();
                bail!("the socket {socket} is not yours to use: try with sudo")
            }
            Err(_) => {
                let socket = self.socket.clone();
                return Err(Unreachable { socket }.into());
            }
        };
        let answer = exchange(stream, request).await;
        let answer = answer.context("the node broke off")?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        let told = serde_json::from_slice::<ErrorAnswer>(&bytes);
        let message = told.map_or_else(
            |_| format!("the node answered {status}"),
            |told| told.message,
        );
        if status == StatusCode::NOT_FOUND {
            return Err(Missing(message).into());
        }
        bail!("{message}")
    }
}

/// One request over a connection of its own.
pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Body>,
) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its end is seen by whoever reads the answer.
    tokio::spawn(connection);
    sender.send_request(request).await
}

pub(super) fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "opr")
        .body(body)
        .expect("a path made of names")
}

pub(super) fn empty() -> Body {
    full(Bytes::new())
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// The lines of an answer, each as soon as it is there.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    held: Vec<u8>,
}

impl Lines {
    pub(super) fn new(answer: Response<Incoming>) -> Self {
        Self {
            body: answer.into_body(),
            held: Vec::new(),
        }
    }

    /// `None` at the end.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        loop {
            if let Some(end) = self.held.iter().position(|&byte| byte == b'\n') {
                let line: Vec<_> = self.held.drain(..=end).collect();
                let document = serde_json::from_slice(&line);
                return Ok(Some(
                    document.context("the node's answer is not understood")?,
                ));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.context("the node broke off")?;
                    self.held.extend(frame.into_data().unwrap_or_default());
                }
            }
        }
    }
}
