//! `containerd-shim-opr-v1`, which containerd executes for each container.
//!
//! Where the container's shim runs already, this tells it which container comes next, answers where it listens, and
//! that is all. For whatever else there is, and for whatever is wrong, it executes `containerd-shim-opr-v1-bootstrap`
//! beside it, with the same arguments and the same standard input, of which it has read nothing.
//!
//! Each start of a container waits for it, so there is nothing in it that takes time before the first line: no C
//! library that asks the processor what it can, no linker, no thread.
#![no_std]
#![no_main]

extern crate alloc;

use core::ffi::CStr;

use alloc::{vec, vec::Vec};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::{BorrowedFd, OwnedFd},
    fs::{
        CWD, FileType, FlockOperation, Mode, OFlags, flock, fstat, major, minor, open,
        readlinkat_raw, rename,
    },
    io::{read, write},
    net::{
        AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send,
        socket_with,
    },
    process::getcwd,
};

mod address;
#[path = "../../src/socket/folder.rs"]
mod folder;
#[path = "../../src/announce/frame.rs"]
mod frame;
#[path = "../../src/bootstrap/group.rs"]
mod group;
mod sys;

/// A larger spec is left to the other program. Bytes.
const MAX_SPEC: usize = sys::MEMORY / 8;
/// Source: `PATH_MAX` of linux/limits.h.
const MAX_PATH: usize = 4096;

fn main() -> ! {
    match start() {
        Some(()) => sys::exit(0),
        None => go_on(),
    }
}

/// None: it is for the other program to do, or to say what is wrong.
fn start() -> Option<()> {
    let flags = Flags::parse(sys::arguments().skip(1))?;
    if !is_nothing(sys::stdin()) {
        return None;
    }
    let group = group::of(&read_spec()?, flags.id).ok()?;
    let address = address::of(flags.address, flags.namespace, &group)?;
    let socket = address.strip_prefix("unix://")?;
    let (folder, _) = socket.rsplit_once('/')?;
    // Before the shim can go, it waits until nobody asks.
    let folder = lock(folder)?;
    announce(socket, flags.id)?;
    drop(folder);
    note("address", &address)?;
    write_all(sys::stdout(), address.as_bytes())
}

/// Executes the program that does everything, as containerd has executed this one. There may be no memory left.
fn go_on() -> ! {
    let mut program = [0; MAX_PATH];
    if find_other(&mut program).is_some()
        && let Ok(program) = CStr::from_bytes_until_nul(&program)
    {
        sys::execute(program);
    }
    let text = "containerd-shim-opr-v1: cannot execute containerd-shim-opr-v1-bootstrap, which has to be in the same \
                folder\n";
    let _ = write_all(sys::stderr(), text.as_bytes());
    sys::exit(1)
}

/// Writes where it is, which is beside this program.
fn find_other(path: &mut [u8; MAX_PATH]) -> Option<()> {
    let own = readlinkat_raw(CWD, "/proc/self/exe", &mut path[..]).ok()?;
    let end = b"-bootstrap\0";
    path.get_mut(own..own + end.len())?.copy_from_slice(end);
    Some(())
}

/// What `start` needs of the command line.
struct Flags<'a> {
    namespace: &'a str,
    address: &'a str,
    id: &'a str,
}

impl<'a> Flags<'a> {
    /// None where there is another flag, another action, or one of these is missing.
    fn parse(mut arguments: impl Iterator<Item = &'a CStr>) -> Option<Self> {
        let (mut namespace, mut address, mut id) = (None, None, None);
        loop {
            let value = match arguments.next()?.to_bytes() {
                b"-namespace" => &mut namespace,
                b"-address" => &mut address,
                b"-id" => &mut id,
                b"-publish-binary" => &mut None,
                b"-debug" => continue,
                b"start" => break,
                _ => return None,
            };
            *value = Some(arguments.next()?.to_str().ok()?);
        }
        match arguments.next() {
            Some(_) => None,
            None => Some(Self {
                namespace: namespace?,
                address: address?,
                id: id?,
            }),
        }
    }
}

/// Whether there is nothing to be read, as far as that shows without reading.
fn is_nothing(input: BorrowedFd) -> bool {
    let Ok(status) = fstat(input) else {
        return false;
    };
    match FileType::from_raw_mode(status.st_mode) {
        FileType::CharacterDevice => (major(status.st_rdev), minor(status.st_rdev)) == NULL,
        FileType::Fifo => {
            let mut ends = [PollFd::new(&input, PollFlags::IN)];
            poll(&mut ends, None).is_ok() && !ends[0].revents().contains(PollFlags::IN)
        }
        _ => false,
    }
}

/// `/dev/null`.
///
/// Source: `Documentation/admin-guide/devices.txt` of Linux.
const NULL: (u32, u32) = (1, 3);

fn read_spec() -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = open("config.json", flags, Mode::empty()).ok()?;
    let size = usize::try_from(fstat(&file).ok()?.st_size).ok()?;
    if size > MAX_SPEC {
        return None;
    }
    // One more byte would show that it has grown.
    let mut text = vec![0; size + 1];
    let mut length = 0;
    loop {
        match read(&file, &mut text[length..]).ok()? {
            0 => break,
            n => length += n,
        }
    }
    (length == size).then_some(())?;
    text.truncate(length);
    Some(text)
}

/// Locks the folder of sockets for asking.
fn lock(path: &str) -> Option<OwnedFd> {
    let folder = folder::open(path).ok()?;
    if !folder::is_private(&folder).ok()? {
        return None;
    }
    flock(&folder, FlockOperation::LockShared).ok()?;
    Some(folder)
}

/// Tells the daemon of the container, whose bundle is the working directory. None: there is no daemon.
fn announce(socket: &str, id: &str) -> Option<()> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let daemon = socket_with(family, kind, SocketFlags::CLOEXEC, None).ok()?;
    connect(&daemon, &SocketAddrUnix::new(socket).ok()?).ok()?;
    // What it does not hear it does later.
    let bundle = getcwd(Vec::new());
    if let Some(bundle) = bundle.as_deref().ok().and_then(|path| path.to_str().ok()) {
        let _ = send(&daemon, &frame::of(id, bundle), SendFlags::NOSIGNAL);
    }
    Some(())
}

/// Leaves a file in the bundle. containerd may read it at any time: it is whole or not there.
fn note(name: &str, text: &str) -> Option<()> {
    let new = [".", name].concat();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o666);
    write_all(open(&*new, flags, mode).ok()?, text.as_bytes())?;
    rename(&*new, name).ok()
}

fn write_all(to: impl rustix::fd::AsFd, bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = &rest[write(&to, rest).ok()?..];
    }
    Some(())
}
