//! The daemon: serves the Task API on a socket that it inherits, until containerd has no more containers for it.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use containerd_shim::{
    Flags,
    protos::{
        shim_async::create_task,
        ttrpc::{
            self,
            r#async::{Server, transport::Listener},
        },
    },
};
use futures_util::stream;
use log::{error, info, warn};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    net::sockopt::socket_acceptconn,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tokio::{
    io::Interest,
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use crate::{
    announce,
    events::Publisher,
    launch::Launcher,
    program,
    reaper::{Reaper, Watched, watch},
    service::Service,
    socket,
    task::{Node, Tasks},
};

/// Who has connected may be about to send a container: until then this process stays.
const GRACE: Duration = Duration::from_secs(2);
/// The last one's container may be that of one before it, who came at almost the same time.
const SETTLE: Duration = Duration::from_millis(250);
/// Without a container for so long, nobody will ask for the end: who started this process failed before it made one.
const IDLE: Duration = Duration::from_secs(10);
/// How long the last events may take.
const FLUSH: Duration = Duration::from_secs(3);

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Standard input is not the socket.
    #[error("standard input is no listening socket: containerd starts this program with `start`")]
    NoSocket,
    /// The kernel refused.
    #[error("cannot {what}")]
    Kernel {
        /// As in "start the spawner".
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The server did not start.
    #[error("cannot serve")]
    Serve(#[from] ttrpc::Error),
}

const HELP: &str = "\
containerd-shim-opr-v1-daemon: serves containerd's Task API for a group of containers; containerd-shim-opr-v1 starts it

Usage: containerd-shim-opr-v1-daemon [FLAGS]

  -namespace NAME       containerd's namespace
  -id NAME              the first container, whose bundle is the working directory
  -address PATH         containerd's socket
  -socket ADDRESS       the socket that stands on standard input
  -debug                more lines in the log
  -v, -version          prints the version
  -h, -help             prints this
";

/// Runs the daemon's program.
#[must_use]
pub fn main() -> ExitCode {
    program::main("containerd-shim-opr-v1-daemon", HELP, run)
}

/// Serves until it is not needed. The process has one thread yet.
fn run(flags: &Flags) -> Result<(), ServeError> {
    let listener = inherit_socket()?;
    // What the starter left open is no logger's.
    crate::sys::close_on_exec_from(3).map_err(|source| ServeError::Kernel {
        what: "keep descriptors from programs",
        source,
    })?;
    // It was executed by a descriptor's number, which the kernel takes for its name.
    let _ = rustix::thread::set_name(c"containerd-shim");
    // It fails where this process leads a session already.
    let _ = rustix::process::setsid();
    crate::log::init(Path::new("."), flags.debug);
    let bundle = std::env::current_dir();
    rustix::process::chdir("/").map_err(failed("leave the bundle"))?;
    let launcher = Launcher::start().map_err(|source| ServeError::Kernel {
        what: "start the spawner",
        source,
    })?;
    // The spawner's children have the limit that this process was started with.
    raise_descriptors().map_err(failed("raise the limit of descriptors"))?;
    let itself = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(itself)).map_err(failed("adopt orphans"))?;
    // One thread: what blocks has threads of its own, and a request that wandered between two would wait for each.
    let runtime = tokio::runtime::Builder::new_current_thread()
        // A hook or a slow disk may hold one for long; the others must find theirs.
        .max_blocking_threads(256)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .map_err(|source| ServeError::Kernel {
            what: "start the runtime",
            source,
        })?;
    let first = bundle.ok().map(|bundle| (flags.id.clone(), bundle));
    let served = runtime.block_on(serve(flags, listener, launcher, first));
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn serve(
    flags: &Flags,
    listener: UnixListener,
    launcher: Launcher,
    first: Option<(String, PathBuf)>,
) -> Result<(), ServeError> {
    let kernel = |what| move |source| ServeError::Kernel { what, source };
    ignore_signals().map_err(kernel("take signals"))?;
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let spawner = launcher.spawner();
    let spawner = spawner.and_then(|spawner| watch(spawner, Interest::READABLE));
    let spawner = spawner.map_err(kernel("watch the spawner"))?;
    let tasks = Arc::new(Tasks::new(Node {
        namespace: flags.namespace.clone(),
        launcher,
        reaper: Reaper::start().map_err(kernel("take signals"))?,
        publisher: Publisher::start(&address, &flags.namespace),
    }));
    if let Some((id, bundle)) = first {
        tasks.expect(id, bundle);
    }
    let shutdown = Arc::new(Notify::new());
    let service = Arc::new(Service::new(tasks.clone(), shutdown.clone()));
    let doorman = Doorman::new(listener).map_err(kernel("listen"))?;
    tokio::spawn(close_without_spawner(
        spawner,
        doorman.clone(),
        flags.socket.clone(),
    ));
    let mut server = Server::new()
        .add_listener(guarded(doorman.clone()))
        .register_service(create_task(service.clone()))
        .register_service(version_2(service))
        .register_service(announce::service(tasks.clone()));
    server.start().await?;
    info!("serves {}", flags.socket);
    until_unused(&tasks, &shutdown, &doorman, &flags.socket).await;
    tasks.flush(FLUSH).await;
    server.shutdown().await?;
    Ok(())
}

/// containerd before 2.0 knows the same service by its older name.
fn version_2(service: Arc<Service>) -> std::collections::HashMap<String, ttrpc::r#async::Service> {
    let services = create_task(service).into_values();
    services
        .map(|service| ("containerd.task.v2.Task".to_owned(), service))
        .collect()
}

/// Waits until containerd has asked for the end or forgotten this process, no container is left, and nobody is about to make one; then the
/// socket is gone.
async fn until_unused(tasks: &Tasks, shutdown: &Notify, doorman: &Doorman, address: &str) {
    loop {
        let asked = tokio::time::timeout(IDLE, shutdown.notified()).await;
        let patience = || match asked {
            // Who came last has made its container, and nobody else is expected.
            Ok(()) if tasks.last_asked() >= doorman.last() => SETTLE,
            Ok(()) => GRACE,
            Err(_) => IDLE,
        };
        while tasks.is_empty() {
            let left = patience().saturating_sub(doorman.quiet_for());
            if !left.is_zero() {
                tokio::time::sleep(left).await;
                continue;
            }
            let is_unused = || tasks.is_empty() && doorman.quiet_for() >= patience();
            // The socket is another daemon's by now.
            if doorman.is_closed.load(Ordering::SeqCst) {
                return;
            }
            match socket::retire(address, is_unused) {
                Ok(true) => return,
                Ok(false) => {}
                Err(e) => return warn!("cannot remove the socket {address}: {e}"),
            }
        }
    }
}

/// Once no process can be made any more, the next container is another daemon's. Those that are here stay here.
async fn close_without_spawner(spawner: Watched, doorman: Arc<Doorman>, address: String) {
    let _ended = spawner.readable().await;
    error!("the spawner has ended: the next containers are another daemon's");
    let close = || {
        doorman.is_closed.store(true, Ordering::SeqCst);
        true
    };
    if let Err(e) = socket::retire(&address, close) {
        warn!("cannot remove the socket {address}: {e}");
    }
}

/// Lets in who comes, and notes when.
struct Doorman {
    listener: tokio::net::UnixListener,
    last: Mutex<Instant>,
    is_closed: AtomicBool,
}

impl Doorman {
    fn new(listener: UnixListener) -> io::Result<Arc<Self>> {
        listener.set_nonblocking(true)?;
        Ok(Arc::new(Self {
            listener: tokio::net::UnixListener::from_std(listener)?,
            last: Mutex::new(Instant::now()),
            is_closed: AtomicBool::new(false),
        }))
    }

    /// When the last one came in.
    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// For how long nobody has come; not at all while somebody is still to be let in, which the kernel alone knows:
    /// who has connected counts on this process.
    fn quiet_for(&self) -> Duration {
        let mut waiting = [PollFd::new(&self.listener, PollFlags::IN)];
        match poll(&mut waiting, Some(&Timespec::default())) {
            Ok(0) => self.last().elapsed(),
            Ok(_) | Err(_) => Duration::ZERO,
        }
    }

    /// Only the owner of this process and root may ask anything.
    fn admits(&self, peer: &UnixStream) -> bool {
        *self.last.lock().unwrap_or_else(|e| e.into_inner()) = Instant::now();
        let owner = rustix::process::geteuid().as_raw();
        match peer.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == owner => true,
            Ok(peer) => {
                warn!("refused a connection of user {}", peer.uid());
                false
            }
            Err(e) => {
                warn!("refused a connection of nobody: {e}");
                false
            }
        }
    }
}

fn guarded(doorman: Arc<Doorman>) -> Listener {
    let accepted = stream::unfold(doorman, |doorman| async move {
        loop {
            match doorman.listener.accept().await {
                Ok((peer, _)) if doorman.admits(&peer) => return Some((Ok(peer), doorman)),
                Ok(_) => {}
                Err(e) => {
                    // Out of descriptors: trying at once again would only burn the processor.
                    warn!("cannot accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Listener::new(accepted)
}

/// A shim ends with its containers, whatever signal comes: containerd's service manager may send one to all.
fn ignore_signals() -> io::Result<()> {
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ] {
        let mut signals = signal(kind)?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                info!("passed over signal {}", kind.as_raw_value());
            }
        });
    }
    Ok(())
}

/// `start` hands the socket over as standard input. It moves away from there, so that nothing that is started later
/// has it.
fn inherit_socket() -> Result<UnixListener, ServeError> {
    let stdin = rustix::stdio::stdin();
    if !socket_acceptconn(stdin).unwrap_or(false) {
        return Err(ServeError::NoSocket);
    }
    let socket: OwnedFd =
        rustix::io::fcntl_dupfd_cloexec(stdin, 3).map_err(failed("keep the socket"))?;
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(failed("open /dev/null"))?;
    rustix::stdio::dup2_stdin(null.as_fd()).map_err(failed("move the socket"))?;
    Ok(socket.into())
}

/// Each container takes a few, for as long as it lives.
fn raise_descriptors() -> rustix::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised)
}

fn failed(what: &'static str) -> impl Fn(rustix::io::Errno) -> ServeError {
    move |e| ServeError::Kernel {
        what,
        source: e.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_connected_counts_before_it_is_let_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let doorman = Doorman::new(UnixListener::bind(&path).unwrap()).unwrap();
        assert!(doorman.quiet_for() > Duration::ZERO);
        let starter = std::os::unix::net::UnixStream::connect(&path).unwrap();
        // As `start` does, which has gone when this process looks.
        drop(starter);
        assert_eq!(doorman.quiet_for(), Duration::ZERO);
        let before = Instant::now();
        let (peer, _) = doorman.listener.accept().await.unwrap();
        assert!(doorman.admits(&peer) && doorman.last() >= before);
        assert!(doorman.quiet_for() > Duration::ZERO);
    }
}
