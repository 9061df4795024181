//! Kept-alive HTTP/1.1 connections to the server in one sandbox.
//!
//! A connection has no task of its own: whoever uses it drives it, so that an exchange costs no switch
//! between tasks. Only a large request body has one, since it may go on beside its answer.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::execution::Body;

/// Idle connections kept, at most; one more is closed.
const MAX_IDLE: usize = 256;
/// A request body up to this size is sent before its answer is waited for. Bytes.
const SMALL_BODY: u64 = 64 * 1024;

/// A connection that serves one request at a time.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Body>,
    /// None: it has ended, or has a task.
    driver: Option<Driver>,
}

type Driver = http1::Connection<TokioIo<TcpStream>, Body>;

/// Idle connections of one instance.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Vec<Connection>>);

/// A request that was not answered.
#[derive(Debug)]
pub(super) enum SendError {
    /// The server cannot have seen it: it comes back.
    Unsent(Box<Request<Body>>),
    /// The connection broke, or what came back was no HTTP.
    Broken(hyper::Error),
}

impl Connections {
    /// The connection used last.
    pub(super) fn take(&self) -> Option<Connection> {
        self.lock().pop()
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.lock();
        if !connection.sender.is_closed() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    /// Closes those that are idle.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Speaks HTTP/1.1 over `stream`.
    pub(super) async fn new(stream: TcpStream) -> Result<Self, hyper::Error> {
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Self {
            sender,
            driver: Some(driver),
        })
    }

    /// Sends one request; answers when the head of the response is there.
    pub(super) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, SendError> {
        let Self { sender, driver } = self;
        let is_small = request.body().size_hint().upper();
        if is_small.is_none_or(|size| size > SMALL_BODY)
            && let Some(driver) = driver.take()
        {
            // Its end, in whatever way, is seen by whoever sends.
            tokio::spawn(driver);
        }
        let exchange = async {
            // The exchange before may not be over on its side, and an idle connection may have been closed.
            if sender.ready().await.is_err() {
                return Err(SendError::Unsent(Box::new(request)));
            }
            let sent = sender.try_send_request(request).await;
            sent.map_err(|mut error| match error.take_message() {
                Some(request) => SendError::Unsent(Box::new(request)),
                None => SendError::Broken(error.into_error()),
            })
        };
        let mut exchange = pin!(exchange);
        poll_fn(|context| drive(driver, context, |context| exchange.as_mut().poll(context))).await
    }

    /// Asks `body` for what has come, and the connection for more of it.
    pub(super) fn poll_body<T>(
        &mut self,
        context: &mut Context<'_>,
        body: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        drive(&mut self.driver, context, body)
    }
}

/// Polls `work`, then the connection that it waits for, then what that has brought.
fn drive<T>(
    driver: &mut Option<Driver>,
    context: &mut Context<'_>,
    mut work: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    if let Poll::Ready(done) = work(context) {
        return Poll::Ready(done);
    }
    let Some(running) = driver else {
        return Poll::Pending;
    };
    if Pin::new(running).poll(context).is_ready() {
        *driver = None;
    }
    work(context)
}
