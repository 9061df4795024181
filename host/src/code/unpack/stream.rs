//! The archive's bytes, decompressed, and counted against what they may cost.

use std::{
    cell::Cell,
    io::{self, Read},
    rc::Rc,
};

use super::{Limits, UnpackError};

/// What was exceeded, and its limit.
pub(super) type Exceeded = Rc<Cell<Option<(&'static str, u64)>>>;

/// Bytes of a zstd frame's window at most: 128 MiB, what the format's own tools accept.
const ZSTD_WINDOW_LOG: u32 = 27;

/// An archive's bytes. Fails, and says so in `exceeded`, where they become too many.
pub(super) struct Stream<'a> {
    from: Box<dyn Read + 'a>,
    taken: u64,
    compressed: Rc<Cell<u64>>,
    limits: Limits,
    exceeded: Exceeded,
}

impl<'a> Stream<'a> {
    /// Chooses the decompressor by the first bytes.
    pub(super) fn new(mut archive: impl Read + 'a, limits: &Limits) -> Result<Self, UnpackError> {
        let malformed = |source| UnpackError::Malformed {
            entry: String::new(),
            source,
        };
        let mut magic = Vec::new();
        archive
            .by_ref()
            .take(4)
            .read_to_end(&mut magic)
            .map_err(malformed)?;
        let compressed = Rc::new(Cell::new(0));
        let counted = Counted {
            from: io::Cursor::new(magic.clone()).chain(archive),
            count: compressed.clone(),
        };
        let from: Box<dyn Read + 'a> = match magic.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(counted)),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let mut decoder = zstd::stream::read::Decoder::new(counted).map_err(malformed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(malformed)?;
                Box::new(decoder)
            }
            b"hsqs" => return Err(UnpackError::Kind { kind: "squashfs" }),
            [b'P', b'K', 3, 4] => return Err(UnpackError::Kind { kind: "zip" }),
            _ => Box::new(counted),
        };
        Ok(Self {
            from,
            taken: 0,
            compressed,
            limits: *limits,
            exceeded: Exceeded::default(),
        })
    }

    /// Tells after a failure whether the archive was too large.
    pub(super) fn exceeded(&self) -> Exceeded {
        self.exceeded.clone()
    }

    fn check(&self) -> Option<(&'static str, u64)> {
        let Limits {
            total_bytes,
            ratio,
            ratio_from_bytes,
            ..
        } = self.limits;
        if self.taken > total_bytes {
            return Some(("has too many bytes", total_bytes));
        }
        let by_ratio = self.compressed.get().saturating_mul(ratio);
        if self.taken > ratio_from_bytes.saturating_add(by_ratio) {
            return Some(("unpacks to too many times its size", ratio));
        }
        None
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.taken += n as u64;
        match self.check() {
            None => Ok(n),
            exceeded => {
                self.exceeded.set(exceeded);
                Err(io::Error::other("the archive is too large"))
            }
        }
    }
}

/// Counts what is read.
struct Counted<R> {
    from: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}
