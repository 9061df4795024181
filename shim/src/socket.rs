//! The socket of a group: one daemon behind it at any time.
//!
//! The folder's lock says who may change what is in it. `start` takes it shared to ask whether somebody answers, and
//! alone to bind; the daemon takes it alone to go. So two starts yield one daemon, and a daemon that goes has either
//! seen who asked, or is not found any more.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

mod folder;

/// How long a process that was killed may take to let go of its socket.
const RELEASE: Duration = Duration::from_secs(5);

/// Why a socket cannot be had, asked or removed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel refused.
    #[error("cannot {what} {path}")]
    File {
        /// As in "listen on".
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder of the socket is open to others.
    #[error("{path} may be written by others than its owner")]
    Folder {
        /// Which.
        path: PathBuf,
    },
}

/// A folder of sockets that is locked. Dropping it unlocks.
#[derive(Debug)]
pub(crate) struct Folder {
    lock: OwnedFd,
}

/// Where the address says.
pub(crate) fn path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

impl Folder {
    /// Makes the folder of a socket where it is missing, and locks it for asking.
    pub(crate) fn ask(socket: &Path) -> Result<Self, SocketError> {
        let path = socket.parent().unwrap_or(Path::new("/"));
        let lock = match folder::open(path) {
            Err(Errno::NOENT) => {
                let made = fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(path);
                made.and_then(|()| Ok(folder::open(path)?))
            }
            opened => opened.map_err(io::Error::from),
        };
        let lock = lock.map_err(failed("open", path))?;
        if !folder::is_private(&lock).map_err(|e| failed("open", path)(e.into()))? {
            return Err(SocketError::Folder { path: path.into() });
        }
        flock(&lock, FlockOperation::LockShared).map_err(|e| failed("lock", path)(e.into()))?;
        Ok(Self { lock })
    }

    /// Locks it alone.
    pub(crate) fn own(&self, socket: &Path) -> Result<(), SocketError> {
        let locked = flock(&self.lock, FlockOperation::LockExclusive);
        locked.map_err(|e| failed("lock the folder of", socket)(e.into()))
    }
}

/// Listens on the socket, which only its owner may open. One that nobody serves is replaced.
pub(crate) fn listen_on(path: &Path) -> Result<UnixListener, SocketError> {
    let make = || {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The file of the socket gets the mode that the socket has when it is bound.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, 4096)?;
        Ok(socket.into())
    };
    make().map_err(failed("listen on", path))
}

/// Removes the daemon's own socket if `is_unused` still says so while nobody can ask.
///
/// # Errors
/// The folder cannot be locked or written; the socket stays.
pub fn retire(address: &str, is_unused: impl FnOnce() -> bool) -> Result<bool, SocketError> {
    let path = path(address);
    let folder = Folder::ask(path)?;
    folder.own(path)?;
    if !is_unused() {
        return Ok(false);
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(true),
    }
}

/// Removes the socket of a daemon that is gone. It is not asked: who asks is about to make a container.
///
/// # Errors
/// The folder cannot be locked or written.
pub(crate) fn remove_stale(address: &str) -> Result<(), SocketError> {
    let path = path(address);
    let deadline = Instant::now() + RELEASE;
    // A process that was killed closes its connections first, which is what brings us here, and its socket a moment
    // later: one that is bound and that nobody has open is about to go.
    while is_bound(path) && !is_open(path) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    retire(address, || !is_bound(path)).map(drop)
}

/// Whether the kernel has a socket that is bound to this path.
fn is_bound(path: &Path) -> bool {
    inodes(path).is_none_or(|inodes| !inodes.is_empty())
}

/// Whether a process has such a socket open, as one that is ending has not.
fn is_open(path: &Path) -> bool {
    let inodes = inodes(path).unwrap_or_default();
    let names: Vec<_> = inodes
        .iter()
        .map(|inode| PathBuf::from(format!("socket:[{inode}]")))
        .collect();
    let has_one = |process: fs::DirEntry| {
        let descriptors = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten();
        descriptors
            .flatten()
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|target| names.contains(&target))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten();
    processes.flatten().any(has_one)
}

/// The inodes of all sockets bound to this path. None: the kernel does not tell.
///
/// Source: proc_net_unix(5); the path is the last field, after the inode.
fn inodes(path: &Path) -> Option<Vec<String>> {
    let end = format!(" {}", path.display());
    let listed = fs::read_to_string("/proc/net/unix").ok()?;
    let bound = listed.lines().filter_map(|line| line.strip_suffix(&end));
    Some(
        bound
            .filter_map(|line| line.split_whitespace().last().map(str::to_owned))
            .collect(),
    )
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path: PathBuf = path.into();
    move |source| SocketError::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    };

    use super::*;

    fn answers(path: &Path) -> bool {
        UnixStream::connect(path).is_ok()
    }

    #[test]
    fn only_the_owner_may_open_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s/socket");
        let lock = Folder::ask(&path).unwrap();
        lock.own(&path).unwrap();
        let _listener = listen_on(&path).unwrap();
        assert!(answers(&path));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let parent = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(parent.mode() & 0o777, 0o700);
    }

    #[test]
    fn replaces_a_socket_that_nobody_serves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(listen_on(&path).unwrap());
        assert!(!answers(&path));
        let _listener = listen_on(&path).unwrap();
        assert!(answers(&path));
    }

    #[test]
    fn refuses_a_folder_that_others_may_write() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Folder::ask(&folder.path().join("socket")).unwrap_err();
        assert!(matches!(error, SocketError::Folder { .. }), "{error}");
    }

    #[test]
    fn is_removed_once_nobody_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = format!("unix://{}", path.display());
        let listener = listen_on(&path).unwrap();
        remove_stale(&address).unwrap();
        assert!(path.exists());
        drop(listener);
        remove_stale(&address).unwrap();
        assert!(!path.exists());
    }

    /// As that of a process that is ending: here it is on its way to another one.
    #[test]
    fn is_removed_once_the_kernel_has_let_go_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = listen_on(&path).unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let descriptors = [listener.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
        ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors));
        let flags = rustix::net::SendFlags::empty();
        rustix::net::sendmsg(&one, &[io::IoSlice::new(b"x")], &mut ancillary, flags).unwrap();
        drop(listener);
        let holder = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop((one, other));
        });
        assert!(is_bound(&path) && !is_open(&path));
        remove_stale(&format!("unix://{}", path.display())).unwrap();
        assert!(!path.exists());
        holder.join().unwrap();
    }

    #[test]
    fn stays_while_it_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = listen_on(&path).unwrap();
        let address = format!("unix://{}", path.display());
        assert!(!retire(&address, || false).unwrap());
        assert!(answers(&path));
        assert!(retire(&address, || true).unwrap());
        assert!(!path.exists());
        assert!(retire(&address, || true).unwrap());
    }
}
