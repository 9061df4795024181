//! The log files of an execution. The function wrote them: nothing about them is trusted.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2, unlinkat};

use super::execution::Logs;

/// Bytes of one log that are read.
const MAX_LOG: u64 = 5 * 1024 * 1024;
/// A log up to this size is read at once. Bytes.
const SMALL_LOG: u64 = 64 * 1024;
/// The size of an empty directory of a tmpfs, which counts 20 bytes an entry. Where another file system counts
/// otherwise, names are looked up in vain.
const EMPTY_DIR: i64 = 40;
/// The two logs of an execution, as in file names and in messages.
const KINDS: [(&str, &str); 2] = [("logs", "Log"), ("errors", "Error")];
/// The server's answer names the execution's log files here, percent-encoded.
pub(super) const LOG_ID: &str = "x-open-runtimes-log-id";

/// A name under which a server says it has logged; fit for a file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogId(String);

impl LogId {
    /// From the header's value; `None` where it is no plain file name.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let text = percent_decode(value)?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_name =
            (1..=128).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(is_plain);
        is_name.then_some(Self(text))
    }

    fn file(&self, kind: &str) -> String {
        format!("{}_{kind}.log", self.0)
    }
}

fn percent_decode(value: &[u8]) -> Option<String> {
    let mut bytes = value.iter().copied();
    let mut text = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        let decoded = if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        };
        text.push(decoded);
    }
    String::from_utf8(text).ok()
}

/// The directory in which a sandbox's server leaves its logs.
#[derive(Debug)]
pub(super) struct LogFiles(OwnedFd);

impl LogFiles {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::PATH;
        Ok(Self(openat(CWD, dir, flags, Mode::empty())?))
    }

    /// Takes both logs of an execution out of the directory.
    pub(super) fn take(&self, id: &LogId) -> Taken {
        // Looking up names that are not there costs a warm execution a tenth of the gateway's time (perf, 2026-11).
        if fstat(&self.0).is_ok_and(|about| about.st_size == EMPTY_DIR) {
            return Taken([None, None]);
        }
        Taken(KINDS.map(|(kind, _)| {
            let name = id.file(kind);
            let opened = self.open_file(&name);
            if !matches!(&opened, Err(error) if error.kind() == io::ErrorKind::NotFound) {
                // A folder of that name stays: it goes with the sandbox.
                let _ = unlinkat(&self.0, &name, AtFlags::empty());
            }
            opened.ok()
        }))
    }

    fn open_file(&self, name: &str) -> io::Result<(File, u64)> {
        // Without NONBLOCK, opening a FIFO would wait for its writer.
        let flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::RDONLY | OFlags::NOFOLLOW;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = File::from(openat2(&self.0, name, flags, Mode::empty(), resolve)?);
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((file, about.len()))
    }
}

/// Both logs of an execution, not read yet. What was missing or no regular file reads as empty.
#[derive(Debug)]
pub(super) struct Taken([Option<(File, u64)>; 2]);

impl Taken {
    /// Whether reading them takes no time to speak of.
    pub(super) fn is_small(&self) -> bool {
        let sizes = self.0.iter().flatten().map(|(_, size)| *size);
        sizes.max().unwrap_or_default() <= SMALL_LOG
    }

    /// Reads both, each up to the cap.
    pub(super) fn read(self) -> Logs {
        let mut texts = self.0.into_iter().zip(KINDS).map(|(file, (_, title))| {
            let (file, size) = file?;
            let mut text = Vec::new();
            file.take(MAX_LOG).read_to_end(&mut text).ok()?;
            if size > MAX_LOG {
                let cut = format!("\n{title} file has been truncated to 5.00MB.");
                text.extend_from_slice(cut.as_bytes());
            }
            Some(text)
        });
        let mut next = || texts.next().flatten().unwrap_or_default();
        Logs {
            logs: next(),
            errors: next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn take(dir: &Path, id: &LogId) -> Logs {
        LogFiles::open(dir).map_or_else(|_| Logs::default(), |files| files.take(id).read())
    }

    fn id() -> LogId {
        LogId::parse(b"abc").unwrap()
    }

    #[test]
    fn accepts_plain_file_names_only() {
        let check = |value: &str, expected: Option<&str>| {
            let parsed = LogId::parse(value.as_bytes()).map(|id| id.0);
            assert_eq!(parsed.as_deref(), expected, "{value}");
        };
        check("0123abc", Some("0123abc"));
        check("a%2Db", Some("a-b"));
        check("..%2Fsecret", None);
        check("..", None);
        check("", None);
        check("a%2", None);
        check("a%00", None);
        check(&"a".repeat(129), None);
    }

    #[test]
    fn takes_both_logs_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("abc_logs.log"), "said").unwrap();
        fs::write(dir.path().join("abc_errors.log"), "failed").unwrap();
        let expected = Logs {
            logs: b"said".to_vec(),
            errors: b"failed".to_vec(),
        };
        assert_eq!(take(dir.path(), &id()), expected);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_huge_log_is_cut_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("abc_logs.log")).unwrap();
        file.set_len(1 << 40).unwrap();
        let taken = LogFiles::open(dir.path()).unwrap().take(&id());
        assert!(!taken.is_small());
        let logs = taken.read().logs;
        assert!(logs.ends_with(b"\0\nLog file has been truncated to 5.00MB."));
        assert!(logs.len() < MAX_LOG as usize + 100);
    }

    #[test]
    fn links_fifos_and_folders_read_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let log = dir.path().join("abc_logs.log");
        symlink(&secret, &log).unwrap();
        assert_eq!(take(dir.path(), &id()), Logs::default());
        assert!(secret.exists());
        rustix::fs::mknodat(
            CWD,
            &log,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        assert_eq!(take(dir.path(), &id()), Logs::default());
        fs::create_dir(&log).unwrap();
        assert_eq!(take(dir.path(), &id()), Logs::default());
    }

    #[test]
    fn a_folder_that_became_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("abc_logs.log"), "secret").unwrap();
        let link = dir.path().join("logs");
        symlink(&target, &link).unwrap();
        assert_eq!(take(&link, &id()), Logs::default());
    }
}
