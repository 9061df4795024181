//! An HTTP/1.1 server on a port or a unix socket: takes connections, hands requests on, drains at the end.
//!
//! What a request means is its service's to know.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixSocket, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::executor::execution::{Body, BodyError};

/// How long a client may take to send a request's head, and how long a kept connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The head of a request, at most. Bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Header lines of a request, at most.
const MAX_HEADERS: usize = 256;
/// Connections at once, at most; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections that the kernel keeps until they are taken.
const BACKLOG: u32 = 1024;
/// Pause after a failed accept: what is short then (descriptors, memory) comes back with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who sent a request: an extension of each request. None: it came by the unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub Option<SocketAddr>);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// On this port.
    Tcp(SocketAddr),
    /// On this socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the address.
    #[error("{address} is taken by another process")]
    Taken {
        /// The address.
        address: Address,
    },
    /// The kernel refused it.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: Address,
        /// Why.
        source: io::Error,
    },
}

/// A server that holds its address and serves nobody yet.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    socket_file: Option<SocketFile>,
    address: Address,
    drain_timeout: Duration,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Server {
    /// Takes a port. `drain_timeout` bounds how long the end waits for requests in flight.
    ///
    /// # Errors
    /// See [`BindError`].
    pub async fn bind(address: SocketAddr, drain_timeout: Duration) -> Result<Self, BindError> {
        let failed = |source| listen_error(Address::Tcp(address), source);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener: Listener::Tcp(listener),
            socket_file: None,
            address: Address::Tcp(bound),
            drain_timeout,
        })
    }

    /// Serves on a socket that listens already: a service manager's, which keeps it while this process restarts.
    ///
    /// # Errors
    /// See [`BindError`]; it is no TCP socket.
    pub fn inherit(
        socket: std::net::TcpListener,
        drain_timeout: Duration,
    ) -> Result<Self, BindError> {
        let address = socket.local_addr();
        let address = address.unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let failed = |source| listen_error(Address::Tcp(address), source);
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            listener: Listener::Tcp(TcpListener::from_std(socket).map_err(failed)?),
            socket_file: None,
            address: Address::Tcp(address),
            drain_timeout,
        })
    }

    /// Makes a unix socket that its owner and group may use; replaces one that nobody listens on.
    ///
    /// # Errors
    /// See [`BindError`].
    pub async fn bind_unix(path: &Path, drain_timeout: Duration) -> Result<Self, BindError> {
        let address = Address::Unix(path.to_owned());
        let (listener, file) = unix(path)
            .await
            .map_err(|source| listen_error(address.clone(), source))?;
        Ok(Self {
            listener: Listener::Unix(listener),
            socket_file: Some(file),
            address,
            drain_timeout,
        })
    }

    /// Where it listens: with the port that the kernel chose where 0 was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves until `shutdown`, then takes no more connections, and ends once requests in flight have their
    /// answers, or the drain timeout has passed. A client that goes away ends the call to `service`.
    pub async fn run<S, F>(self, service: S, shutdown: CancellationToken)
    where
        S: Fn(Request<Body>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        loop {
            let has_room = connections.len() < MAX_CONNECTIONS;
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = connections.join_next(), if !connections.is_empty() => {}
                accepted = self.listener.accept(), if has_room => match accepted {
                    Ok((stream, peer)) => {
                        let (service, shutdown) = (service.clone(), shutdown.clone());
                        connections.spawn(serve(stream, peer, service, shutdown));
                    }
                    Err(error) => {
                        tracing::warn!(address = %self.address, %error, "accepting a connection failed");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        let Self {
            listener,
            socket_file,
            address,
            ..
        } = self;
        drop((listener, socket_file));
        let drained = async { while connections.join_next().await.is_some() {} };
        if timeout(self.drain_timeout, drained).await.is_err() {
            let open = connections.len();
            tracing::warn!(%address, open, "connections were cut off at the end of the drain timeout");
            connections.shutdown().await;
        }
    }
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    async fn accept(&self) -> io::Result<(Box<dyn Stream>, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "TCP_NODELAY was refused");
                }
                Ok((Box::new(stream), Peer(Some(peer))))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Box::new(stream), Peer(None)))
            }
        }
    }
}

async fn serve<S, F>(stream: Box<dyn Stream>, peer: Peer, service: S, shutdown: CancellationToken)
where
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
        request.extensions_mut().insert(peer);
        let answer = service(request);
        async { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(?peer, %error, "a connection broke off");
    }
}

fn listen_error(address: Address, source: io::Error) -> BindError {
    if source.kind() == io::ErrorKind::AddrInUse {
        BindError::Taken { address }
    } else {
        BindError::Listen { address, source }
    }
}

/// The file of a unix socket; dropping it removes the file, unless another socket has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |meta: std::fs::Metadata| meta.ino() == self.inode;
        if std::fs::symlink_metadata(&self.path).is_ok_and(is_ours)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "removing a socket failed");
        }
    }
}

/// The mode is set before the socket listens: nobody can have connected by then.
async fn unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path).await?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        inode: std::fs::symlink_metadata(path)?.ino(),
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok((socket.listen(BACKLOG)?, file))
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

#[cfg(test)]
mod tests;
