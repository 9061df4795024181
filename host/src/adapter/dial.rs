//! Sockets made inside the sandboxes' network namespaces, connected from outside.
//!
//! A socket stays in the namespace it was made in, so one thread that moves between namespaces makes
//! them, and the async runtime connects and uses them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    thread,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
};

use crate::sys;

/// Makes sockets in network namespaces, on a thread of its own that ends with it.
#[derive(Debug)]
pub(super) struct Dialer {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    netns: Arc<OwnedFd>,
    answer: oneshot::Sender<io::Result<OwnedFd>>,
}

impl Dialer {
    pub(super) fn start() -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        thread::Builder::new()
            .name("opr-dial".into())
            .spawn(move || {
                for Request { netns, answer } in inbox {
                    let socket = sys::enter_network(netns.as_fd()).and_then(|()| new_socket());
                    // Whoever asked may have gone; the socket is closed then.
                    let _ = answer.send(socket);
                }
            })?;
        Ok(Self { requests })
    }

    /// Connects to `port` on the loopback address of `netns`, or of this process's namespace.
    pub(super) async fn dial(
        &self,
        netns: Option<&Arc<OwnedFd>>,
        port: u16,
    ) -> io::Result<TcpStream> {
        let socket = match netns {
            None => new_socket()?,
            Some(netns) => self.socket_in(netns).await?,
        };
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let stream = socket
            .connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn socket_in(&self, netns: &Arc<OwnedFd>) -> io::Result<OwnedFd> {
        let (answer, socket) = oneshot::channel();
        let gone = || io::Error::other("the thread that makes sockets has ended");
        self.requests
            .send(Request {
                netns: netns.clone(),
                answer,
            })
            .map_err(|_| gone())?;
        socket.await.map_err(|_| gone())?
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        flags,
        None,
    )?)
}
