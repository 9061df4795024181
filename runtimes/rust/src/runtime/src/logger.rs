//! The two log files of an execution. They are written when there is something to write, at the latest before the response
//! leaves, so that a silent function costs no file; failing to write them never fails the execution.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    hash::{BuildHasher, RandomState},
    io::Write,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use openruntimes::Logger;

const RECORD_LIMIT: usize = 8_000;
const TRUNCATED: &str = "... Log truncated due to size limit (8000 characters)";
const NATIVE_NOTICE: &str =
    "Native logs detected. Use context.log() or context.error() for better experience.\n";
const BUFFER_LIMIT: usize = 64 << 10;
/// Callers read 5 MiB of a file and say so when there is more: what lies further back would only fill the disk.
const FILE_LIMIT: usize = (5 << 20) + (64 << 10);

/// Buffered text of one log file.
struct LogFile {
    path: PathBuf,
    buffer: Vec<u8>,
    room: usize,
}

impl LogFile {
    fn new(directory: &Path, id: &str, stream: &str) -> Self {
        let path = directory.join(format!("{id}_{stream}.log"));
        Self {
            path,
            buffer: Vec::new(),
            room: FILE_LIMIT,
        }
    }

    fn write(&mut self, text: &[u8]) {
        let room = self.room - self.buffer.len();
        self.buffer.extend_from_slice(&text[..text.len().min(room)]);
        if self.buffer.len() > BUFFER_LIMIT {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        match OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.path)
        {
            Ok(mut file) => {
                drop(file.write_all(&self.buffer));
                self.room -= self.buffer.len();
            }
            Err(_) => self.room = 0,
        }
        self.buffer.clear();
    }
}

struct Streams {
    is_open: bool,
    logs: LogFile,
    errors: LogFile,
    has_native: bool,
    is_mid_line: bool,
}

impl Streams {
    fn end_line(&mut self) {
        if self.is_mid_line {
            self.logs.write(b"\n");
            self.is_mid_line = false;
        }
    }
}

/// The log of one execution; after [`close`](Self::close) nothing is written any more. An empty id means that its caller wants
/// none.
pub(crate) struct ExecutionLog {
    pub(crate) id: String,
    streams: Mutex<Streams>,
}

impl ExecutionLog {
    pub(crate) fn new(directory: &Path, id: String) -> Self {
        let streams = Streams {
            is_open: !id.is_empty(),
            logs: LogFile::new(directory, &id, "logs"),
            errors: LogFile::new(directory, &id, "errors"),
            has_native: false,
            is_mid_line: false,
        };
        Self {
            id,
            streams: Mutex::new(streams),
        }
    }

    /// Takes what the function printed by other means than its context.
    pub(crate) fn native(&self, text: &[u8]) {
        let Some(mut streams) = self.open_streams() else {
            return;
        };
        if !streams.has_native {
            streams.end_line();
            streams.logs.write(NATIVE_NOTICE.as_bytes());
        }
        streams.has_native = true;
        streams.logs.write(text);
        streams.is_mid_line = !text.ends_with(b"\n");
    }

    pub(crate) fn flush(&self) {
        let Some(mut streams) = self.open_streams() else {
            return;
        };
        streams.end_line();
        streams.logs.flush();
        streams.errors.flush();
    }

    pub(crate) fn close(&self) {
        self.flush();
        if let Some(mut streams) = self.open_streams() {
            streams.is_open = false;
        }
    }

    fn open_streams(&self) -> Option<MutexGuard<'_, Streams>> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.is_open.then_some(streams)
    }
}

impl Logger for ExecutionLog {
    fn log(&self, text: &str) {
        let Some(mut streams) = self.open_streams() else {
            return;
        };
        streams.end_line();
        streams.logs.write(record(text).as_bytes());
    }

    fn error(&self, text: &str) {
        let Some(mut streams) = self.open_streams() else {
            return;
        };
        streams.errors.write(record(text).as_bytes());
    }
}

/// The id asked for where it is a safe file name, else one of the runtime's own; empty where logging is off.
pub(crate) fn log_id(headers: &HashMap<String, String>, is_development: bool) -> String {
    let header = |name| headers.get(name).map_or("", String::as_str);
    if !matches!(header("x-open-runtimes-logging"), "" | "enabled") {
        return String::new();
    }
    match header("x-open-runtimes-log-id") {
        wanted if is_safe(wanted) => wanted.to_owned(),
        "" if is_development => "dev".to_owned(),
        _ => generate_id(),
    }
}

fn is_safe(id: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&id.len()) && !id.starts_with('.') && id.bytes().all(is_allowed)
}

/// Seconds (8 hexadecimal digits), fraction of a second (5), random (7).
fn generate_id() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    // The keys of a hash are random: the library's source of random numbers.
    let random = RandomState::new().hash_one(now) & 0x0fff_ffff;
    format!(
        "{:08x}{:05x}{random:07x}",
        now.as_secs(),
        now.subsec_micros()
    )
}

fn record(text: &str) -> String {
    if text.len() <= RECORD_LIMIT {
        return format!("{text}\n");
    }
    let mut end = RECORD_LIMIT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{TRUNCATED}\n", &text[..end])
}
