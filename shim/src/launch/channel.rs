//! Messages with descriptors between the shim, its spawner and the processes of containers.
//!
//! ```text
//! length: u32   descriptors: u32   body: length bytes, postcard
//! ```
//! Descriptors go with the head, and with one more byte for each 250 of them: the kernel takes 253 at a time.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// A message, at most. Bytes. Arguments and environment of a program have 2 MiB in the kernel.
const MAX_BODY: usize = 16 * 1024 * 1024;
/// Descriptors of a message, at most.
const MAX_DESCRIPTORS: usize = 1000;
const AT_ONCE: usize = 250;

/// Sends one message.
pub(super) fn send(
    stream: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd],
) -> io::Result<()> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if body.len() > MAX_BODY || descriptors.len() > MAX_DESCRIPTORS {
        let text = format!(
            "{} bytes and {} descriptors are too many",
            body.len(),
            descriptors.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let size = |len: usize| u32::try_from(len).expect("bounded above").to_ne_bytes();
    let head = [size(body.len()), size(descriptors.len())].concat();
    let (first, rest) = descriptors.split_at(descriptors.len().min(AT_ONCE));
    send_with(stream, &head, first)?;
    for some in rest.chunks(AT_ONCE) {
        send_with(stream, &[0], some)?;
    }
    (&*stream).write_all(&body)
}

/// Receives one message; None where the other side has closed.
pub(super) fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut descriptors = Vec::new();
    let mut head = [0; 8];
    if receive_with(stream, &mut head, &mut descriptors)? == 0 {
        return Ok(None);
    }
    let number =
        |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes")) as usize;
    let (length, n) = (number(0), number(4));
    if length > MAX_BODY || n > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidData.into());
    }
    while descriptors.len() < n {
        if receive_with(stream, &mut [0], &mut descriptors)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut body = vec![0; length];
    (&*stream).read_exact(&mut body)?;
    let message = postcard::from_bytes(&body).map_err(io::Error::other)?;
    Ok(Some((message, descriptors)))
}

fn send_with(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let sent = retry(|| {
        sendmsg(
            stream,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
    })?;
    // A few bytes fit into any socket's buffer whole.
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

fn receive_with(
    stream: &UnixStream,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = retry(|| {
        recvmsg(
            stream.as_fd(),
            &mut [IoSliceMut::new(bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
        )
    })?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    match received.bytes {
        0 => Ok(0),
        n if n == bytes.len() => Ok(n),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn many_descriptors_and_a_large_body_arrive_whole() {
        let (one, other) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let body = "x".repeat(1024 * 1024);
        let sent = body.clone();
        let sender = std::thread::spawn(move || {
            let descriptors = vec![file.as_fd(); 600];
            send(&one, &sent, &descriptors).unwrap();
        });
        let (received, descriptors): (String, _) = receive(&other).unwrap().unwrap();
        sender.join().unwrap();
        assert!(received == body && descriptors.len() == 600);
        assert!(receive::<String>(&other).unwrap().is_none());
        let flags = rustix::io::fcntl_getfd(&descriptors[599]).unwrap();
        assert!(
            flags.contains(rustix::io::FdFlags::CLOEXEC),
            "{}",
            descriptors[599].as_raw_fd()
        );
    }
}
