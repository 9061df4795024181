//! Unpacks an archive that a tenant made: a tar file, plain or compressed by gzip or zstd, told by its content.
//!
//! Nothing outside of the target is touched, whatever the bytes: each name is opened beneath the target's
//! descriptor with no link followed, and whatever is no file, directory or harmless link is refused.
//! What it costs is bounded by [`Limits`].
//!
//! Symbolic links are made, but never followed here. Allowed are links that stay inside of the target
//! wherever they are read, and links into `/usr`: virtual environments name their interpreter so, and in the
//! sandbox, where alone they are followed, that is its image's read-only part.
//!
//! How a child process does this without any rights is [`confined`]'s.

use std::{
    io::{self, Read},
    os::fd::BorrowedFd,
};

pub mod confined;

mod header;
mod restrict;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod tree;

use header::{Entry, Kind, Next, Pending};
use stream::Stream;
use tree::Tree;

/// What an archive may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the unpacked archive, its own headers included. Default 1 GiB.
    pub total_bytes: u64,
    /// Bytes of one file. Default 512 MiB.
    pub file_bytes: u64,
    /// Entries. Default 200,000.
    pub entries: u64,
    /// Unpacked bytes for each byte of the archive, beyond `ratio_from_bytes`. Default 200.
    pub ratio: u64,
    /// Unpacked bytes from which `ratio` counts. Default 16 MiB.
    pub ratio_from_bytes: u64,
    /// Bytes of a name, and of a link's target. Default 1,024.
    pub name_bytes: usize,
    /// Directories above an entry. Default 128.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total_bytes: 1 << 30,
            file_bytes: 512 << 20,
            entries: 200_000,
            ratio: 200,
            ratio_from_bytes: 16 << 20,
            name_bytes: 1024,
            depth: 128,
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes in files.
    pub bytes: u64,
}

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes are no archive, or end too early.
    #[error("this is no intact tar archive, plain or compressed by gzip or zstd{}", after(.entry))]
    Malformed {
        /// The last entry that could be read.
        entry: String,
        /// Why.
        source: io::Error,
    },
    /// The archive is of a kind that is not unpacked here.
    #[error("{kind} archives are not accepted; make a tar archive")]
    Kind {
        /// Its kind.
        kind: &'static str,
    },
    /// A name is absolute, holds `..` or a NUL, or is too long or too deep.
    #[error("entry {entry:?} has a name that {what}")]
    Name {
        /// The name.
        entry: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A link points out of the archive.
    #[error("entry {entry:?} is a link to {target:?}, which {what}")]
    Link {
        /// The link.
        entry: String,
        /// Where it points.
        target: String,
        /// What is wrong with that.
        what: &'static str,
    },
    /// A device, a FIFO, a sparse file or what else no function needs.
    #[error("entry {entry:?} is {what}, which is not accepted")]
    Special {
        /// Its name.
        entry: String,
        /// What it is.
        what: &'static str,
    },
    /// The archive costs too much.
    #[error("the archive {what}, more than the {limit} that are accepted{}", after(.entry))]
    TooLarge {
        /// The entry where that was seen.
        entry: String,
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Two entries cannot both be there.
    #[error("entry {entry:?} is in the way of another one")]
    Clash {
        /// The later one.
        entry: String,
    },
    /// The host could not write: the disk is full, or it broke.
    #[error("cannot write entry {entry:?}")]
    Write {
        /// Which one.
        entry: String,
        /// Why.
        source: io::Error,
    },
}

impl UnpackError {
    /// Whether the archive is to blame, and not the host.
    pub fn is_archives_fault(&self) -> bool {
        match self {
            Self::Malformed { .. }
            | Self::Kind { .. }
            | Self::Name { .. }
            | Self::Link { .. }
            | Self::Special { .. }
            | Self::TooLarge { .. }
            | Self::Clash { .. } => true,
            Self::Write { .. } => false,
        }
    }
}

fn after(entry: &str) -> String {
    if entry.is_empty() {
        String::new()
    } else {
        format!(" (seen at entry {entry:?})")
    }
}

/// Unpacks `archive` into the directory `root`. Directories become 0755, files 0644, or 0755 where the
/// archive says that their owner may execute them; owners, times and all else are left out.
///
/// # Errors
/// See [`UnpackError`]; what was unpacked until then stays, for the caller to remove.
pub fn unpack(
    archive: impl Read,
    root: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<Summary, UnpackError> {
    let mut work = Work {
        tree: Tree::new(root),
        limits,
        summary: Summary::default(),
        last: String::new(),
        headers: 0,
    };
    let stream = Stream::new(archive, limits)?;
    let exceeded = stream.exceeded();
    let outcome = work.run(stream);
    // What the reader saw explains a failure better than what the tar format makes of it.
    match (exceeded.get(), outcome) {
        (Some((what, limit)), Err(_)) => Err(UnpackError::TooLarge {
            entry: work.last,
            what,
            limit,
        }),
        (_, outcome) => outcome.map(|()| work.summary),
    }
}

struct Work<'a> {
    tree: Tree<'a>,
    limits: &'a Limits,
    summary: Summary,
    /// The name of the entry at hand, for messages.
    last: String,
    headers: u64,
}

impl Work<'_> {
    fn run(&mut self, stream: Stream<'_>) -> Result<(), UnpackError> {
        let mut archive = tar::Archive::new(stream);
        // Raw: long names and extended headers are read here, with bounds.
        let entries = archive.entries().map_err(|e| self.malformed(e))?.raw(true);
        let mut pending = Pending::default();
        for entry in entries {
            let mut data = entry.map_err(|e| self.malformed(e))?;
            self.headers += 1;
            if self.headers > self.limits.entries {
                return Err(self.too_large("has too many entries", self.limits.entries));
            }
            match pending.read(&mut data, self.limits)? {
                Next::More => {}
                Next::Entry(entry) => {
                    self.last = entry.shown();
                    self.place(&entry, &mut data)?;
                    pending = Pending::default();
                }
            }
        }
        Ok(())
    }

    fn place(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), UnpackError> {
        match &entry.kind {
            Kind::Directory => self.tree.directory(&entry.name),
            Kind::Symlink(target) => self.tree.symlink(&entry.name, target),
            Kind::Hardlink(target) => self.tree.hardlink(&entry.name, target),
            Kind::File { size, .. } if *size > self.limits.file_bytes => {
                return Err(self.too_large("has too large a file", self.limits.file_bytes));
            }
            Kind::File {
                size,
                is_executable,
            } => {
                let file = self.tree.file(&entry.name, *is_executable);
                return self.fill(file.map_err(|e| self.unwritten(e))?, *size, data);
            }
        }
        .map_err(|e| self.unwritten(e))?;
        self.summary.entries += 1;
        Ok(())
    }

    /// Copies in pieces, since reading and writing fail for different reasons.
    fn fill(
        &mut self,
        mut file: std::fs::File,
        size: u64,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let mut buffer = vec![0; 64 * 1024];
        let mut left = size;
        while left > 0 {
            let n = data.read(&mut buffer).map_err(|e| self.malformed(e))?;
            if n == 0 {
                return Err(self.malformed(io::ErrorKind::UnexpectedEof.into()));
            }
            io::Write::write_all(&mut file, &buffer[..n])
                .map_err(|e| self.unwritten(tree::PlaceError::Write(e)))?;
            left = left.saturating_sub(n as u64);
        }
        self.summary.entries += 1;
        self.summary.bytes += size;
        Ok(())
    }

    fn malformed(&self, source: io::Error) -> UnpackError {
        UnpackError::Malformed {
            entry: self.last.clone(),
            source,
        }
    }

    fn too_large(&self, what: &'static str, limit: u64) -> UnpackError {
        UnpackError::TooLarge {
            entry: self.last.clone(),
            what,
            limit,
        }
    }

    fn unwritten(&self, error: tree::PlaceError) -> UnpackError {
        let entry = self.last.clone();
        match error {
            tree::PlaceError::Clash => UnpackError::Clash { entry },
            tree::PlaceError::NoTarget(target) => UnpackError::Link {
                entry,
                target,
                what: "is no file that came before it",
            },
            tree::PlaceError::Write(source) => UnpackError::Write { entry, source },
        }
    }
}
