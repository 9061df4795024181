//! What the calls of the executor API hold of bodies and answers, which their formats need whole: bounded over all calls.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::executor::execution::{Body, BodyError};

/// Memory is counted in these. Bytes.
const UNIT: usize = 1024;

/// The memory that is free.
#[derive(Debug)]
pub(super) struct Memory(Arc<Semaphore>);

/// The memory of one call. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    free: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
    /// Bytes of the permits that nothing is in.
    spare: usize,
}

/// Why a body is not there as a whole.
#[derive(Debug)]
pub(super) enum WholeError {
    /// It has more bytes than it may.
    TooLarge,
    /// No memory is free.
    Full,
    /// It broke off.
    Broken(BodyError),
}

impl Memory {
    pub(super) fn new(mib: usize) -> Self {
        let units = mib.saturating_mul(1024 * 1024 / UNIT);
        Self(Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))))
    }

    pub(super) fn hold(&self) -> Held {
        Held {
            free: self.0.clone(),
            permits: Vec::new(),
            spare: 0,
        }
    }
}

impl Held {
    /// Reads a body whole, `limit` bytes at most.
    pub(super) async fn whole(
        &mut self,
        mut body: Body,
        limit: usize,
    ) -> Result<Bytes, WholeError> {
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(WholeError::Broken)?;
            let Ok(bytes) = frame.into_data() else {
                continue;
            };
            if whole.len() + bytes.len() > limit {
                return Err(WholeError::TooLarge);
            }
            self.grow(bytes.len()).ok_or(WholeError::Full)?;
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    fn grow(&mut self, bytes: usize) -> Option<()> {
        let more = bytes.saturating_sub(self.spare).div_ceil(UNIT);
        if more > 0 {
            let permits = self
                .free
                .clone()
                .try_acquire_many_owned(more.try_into().ok()?);
            self.permits.push(permits.ok()?);
        }
        self.spare = self.spare + more * UNIT - bytes;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::Full;

    use super::*;

    fn body(length: usize) -> Body {
        Full::from(vec![0; length])
            .map_err(|never| match never {})
            .boxed_unsync()
    }

    fn whole(held: &mut Held, length: usize) -> Result<usize, WholeError> {
        let read = held.whole(body(length), 1 << 20).now_or_never();
        read.expect("it is there").map(|bytes| bytes.len())
    }

    #[test]
    fn calls_share_what_there_is_and_give_it_back() {
        let memory = Memory::new(1);
        let (mut one, mut two) = (memory.hold(), memory.hold());
        assert_eq!(whole(&mut one, 1023 * 1024).unwrap(), 1023 * 1024);
        assert_eq!(whole(&mut two, 1000).unwrap(), 1000);
        assert_eq!(whole(&mut two, 24).unwrap(), 24);
        assert!(matches!(whole(&mut two, 1), Err(WholeError::Full)));
        drop(one);
        assert_eq!(whole(&mut two, 1).unwrap(), 1);
    }

    #[test]
    fn a_body_over_its_limit_is_not_read() {
        let mut held = Memory::new(100).hold();
        let large = whole(&mut held, (1 << 20) + 1);
        assert!(matches!(large, Err(WholeError::TooLarge)));
        assert!(held.permits.is_empty());
    }
}
