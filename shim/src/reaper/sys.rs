//! Watching a descriptor without blocking, which tokio leaves to the caller to argue.
#![allow(
    unsafe_code,
    reason = "tokio cannot know that a descriptor stays the same"
)]

use std::{io, os::fd::OwnedFd, sync::Arc};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor whose readiness wakes tasks.
pub(crate) type Watched = AsyncFd<Arc<OwnedFd>>;

/// Watches a descriptor. It needs a runtime with I/O.
///
/// # Errors
/// `EPERM` for what the kernel cannot watch, as a regular file; `ENOSPC` where it watches too many.
///
/// Source: `epoll_ctl(2)`.
pub(crate) fn watch(fd: impl Into<Arc<OwnedFd>>, interest: Interest) -> io::Result<Watched> {
    // SAFETY: an `Arc<OwnedFd>` answers the same descriptor at each call and keeps it open as long as it lives, and
    // the answer takes it over.
    let watched = unsafe { AsyncFd::register_with_interest(fd.into(), interest) };
    Ok(watched?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wakes_when_there_is_something_to_read() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let read = watch(read, Interest::READABLE).unwrap();
        rustix::io::write(&write, b"x").unwrap();
        assert!(read.readable().await.is_ok());
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let error = watch(OwnedFd::from(file), Interest::READABLE).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM));
    }
}
