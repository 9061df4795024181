//! Where streams come from and go to: addresses become descriptors.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::{FileType, Mode, OFlags};

use super::{Owner, StdioConfig, StdioError, logger, pipe};
use crate::reaper::Launch;

/// Where output goes.
#[derive(Debug)]
pub(super) enum Target {
    Null,
    /// Both directions of it, so that it has a reader at all times.
    Fifo(OwnedFd),
    File(File),
    /// The writing side of a pipe that a logger reads.
    Logger(OwnedFd),
}

/// A FIFO that is read.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) reader: OwnedFd,
    pub(super) writer: OwnedFd,
}

impl Input {
    pub(super) fn open(path: &str) -> Result<Option<Self>, StdioError> {
        let path = path.strip_prefix("fifo://").unwrap_or(path);
        if path.is_empty() {
            return Ok(None);
        }
        let reader = open_fifo(path, OFlags::RDONLY)?;
        let writer = open_fifo(path, OFlags::WRONLY)?;
        Ok(Some(Self { reader, writer }))
    }
}

/// Where standard output and error go. A `binary://` address of the first names the logger of both.
pub(super) async fn outputs(
    config: &StdioConfig,
    owner: Owner<'_>,
    launch: &Launch,
) -> Result<(Target, Target), StdioError> {
    let stderr = match config.terminal {
        true => "",
        false => config.stderr.as_str(),
    };
    if config.stdout.starts_with("binary://") {
        let (stdout, stderr_pipe) = (pipe(owner)?, pipe(owner)?);
        logger::start(&config.stdout, owner, (stdout.0, stderr_pipe.0), launch).await?;
        let stderr = match config.terminal {
            true => Target::Null,
            false => Target::Logger(stderr_pipe.1),
        };
        return Ok((Target::Logger(stdout.1), stderr));
    }
    Ok((output(&config.stdout)?, output(stderr)?))
}

/// Reads nothing, keeps nothing.
pub(super) fn null() -> Result<OwnedFd, StdioError> {
    open("/dev/null", OFlags::RDWR)
}

fn output(address: &str) -> Result<Target, StdioError> {
    if let Some(path) = address.strip_prefix("file://") {
        return file(path).map(Target::File);
    }
    let path = address.strip_prefix("fifo://").unwrap_or(address);
    if path.is_empty() {
        return Ok(Target::Null);
    }
    if path.contains("://") {
        let reason = "the scheme is none of fifo, file, binary";
        return Err(refused(address, reason));
    }
    if fs::metadata(path).is_ok_and(|kind| kind.is_file()) {
        return file(path).map(Target::File);
    }
    open_fifo(path, OFlags::RDWR).map(Target::Fifo)
}

/// Appends, as containerd's file address wants it, and makes the folders above.
fn file(path: &str) -> Result<File, StdioError> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err(refused(&path.to_string_lossy(), "the path is not absolute"));
    }
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)
        .and_then(|()| OpenOptions::new().create(true).append(true).open(path))
        .map_err(|source| failed(path, source))
}

fn open_fifo(path: &str, access: OFlags) -> Result<OwnedFd, StdioError> {
    if !Path::new(path).is_absolute() {
        return Err(refused(path, "the path is not absolute"));
    }
    let fifo = open(path, access | OFlags::NONBLOCK)?;
    let kind = rustix::fs::fstat(&fifo).map_err(|e| failed(path.as_ref(), e.into()))?;
    if FileType::from_raw_mode(kind.st_mode) != FileType::Fifo {
        return Err(refused(path, "it is no FIFO"));
    }
    Ok(fifo)
}

fn open(path: &str, flags: OFlags) -> Result<OwnedFd, StdioError> {
    rustix::fs::open(
        path,
        flags | OFlags::CLOEXEC | OFlags::NOCTTY,
        Mode::empty(),
    )
    .map_err(|e| failed(path.as_ref(), e.into()))
}

fn refused(uri: &str, reason: &'static str) -> StdioError {
    StdioError::Address {
        uri: uri.to_owned(),
        reason,
    }
}

fn failed(path: &Path, source: io::Error) -> StdioError {
    StdioError::Open {
        path: path.to_owned(),
        source,
    }
}
