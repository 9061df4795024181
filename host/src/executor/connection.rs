//! Kept-alive HTTP/1.1 connections to the server in one sandbox.

use std::sync::{Mutex, PoisonError};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::execution::Body;

/// A connection that serves one request at a time.
pub(super) type Connection = SendRequest<Body>;

/// Idle connections kept, at most; one more is closed.
const MAX_IDLE: usize = 256;

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
    /// The connection used last that is still open.
    pub(super) fn take(&self) -> Option<Connection> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        // One whose request is still on its way is not ready yet, and stays.
        let ready_index = idle.iter().rposition(SendRequest::is_ready)?;
        Some(idle.remove(ready_index))
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_closed() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    /// Closes those that are idle.
    pub(super) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

/// Speaks HTTP/1.1 over `stream`. The connection lives until its last handle is dropped or the server closes it.
pub(super) async fn connect(stream: TcpStream) -> Result<Connection, hyper::Error> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its end, in whatever way, is seen by whoever sends.
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends one request; answers when the head of the response is there.
pub(super) async fn send(
    connection: &mut Connection,
    request: Request<Body>,
) -> Result<Response<Incoming>, SendError> {
    connection
        .try_send_request(request)
        .await
        .map_err(|mut error| match error.take_message() {
            Some(request) => SendError::Unsent(Box::new(request)),
            None => SendError::Broken(error.into_error()),
        })
}
