//! A language's server spoken to without the node: a connection made inside its sandbox's network, files below its root.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::node::Answer;

const PORT: u16 = 3000;
const PATIENCE: Duration = Duration::from_secs(60);

/// The main process of one sandbox.
pub(crate) struct Server {
    pid: u32,
}

/// A request. Header names are sent as they are.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: &'a [u8],
    pub(crate) is_chunked: bool,
}

impl Server {
    /// The one of this instance, once its port accepts.
    pub(crate) fn wait_for(instance: &str) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(pid) = find_process(instance) {
                let server = Self { pid };
                if server.connect().is_ok() {
                    return Ok(server);
                }
            }
            ensure!(Instant::now() < deadline, "{instance} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn send(&self, request: &Request) -> Result<Answer> {
        let connection = self.connect()?;
        connection.set_read_timeout(Some(PATIENCE))?;
        std::thread::scope(|scope| {
            // A server may answer, and go, before it has read all.
            scope.spawn(|| write(&connection, request).and_then(|()| (&connection).flush()));
            let answer = read(&connection, request.method == "HEAD");
            let _ = connection.shutdown(Shutdown::Both);
            answer
        })
    }

    pub(crate) fn log_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.logs()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// What the file holds; nothing where there is none.
    pub(crate) fn read_log(&self, name: &str) -> String {
        let bytes = fs::read(self.logs().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn clear_logs(&self) -> Result<()> {
        Ok(self.log_files().iter().try_for_each(fs::remove_file)?)
    }

    fn logs(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/mnt/logs", self.pid))
    }

    /// A socket belongs to the network of the thread that makes it: that thread is made for it.
    fn connect(&self) -> Result<TcpStream> {
        let network = File::open(format!("/proc/{}/ns/net", self.pid))?;
        let connect = move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpStream::connect(("127.0.0.1", PORT))
        };
        let made = std::thread::spawn(connect).join().expect("no panic");
        Ok(made?)
    }
}

/// The first process of the sandbox, which is the one that all others come from.
fn find_process(instance: &str) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let sandbox = format!("/{instance}-");
    let is_inside = |pid: &u32| {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
        cgroups.is_ok_and(|cgroups| cgroups.contains(&sandbox))
    };
    pids.filter(is_inside).min()
}

fn write(mut to: &TcpStream, request: &Request) -> std::io::Result<()> {
    let Request {
        method,
        path,
        headers,
        body,
        is_chunked,
    } = request;
    let has = |wanted: &str| {
        headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(wanted))
    };
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !has("host") {
        head += "host: localhost:3000\r\n";
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if *is_chunked {
        head += "transfer-encoding: chunked\r\n";
    } else if !body.is_empty() && !has("content-length") {
        head += &format!("content-length: {}\r\n", body.len());
    }
    to.write_all(format!("{head}\r\n").as_bytes())?;
    if !is_chunked {
        return to.write_all(body);
    }
    for chunk in body.chunks(65536) {
        to.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
        to.write_all(chunk)?;
        to.write_all(b"\r\n")?;
    }
    to.write_all(b"0\r\n\r\n")
}

/// Reads an answer until its end, or the connection's.
fn read(mut from: &TcpStream, is_head: bool) -> Result<Answer> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            break at;
        }
        let count = from.read(&mut buffer)?;
        ensure!(count > 0, "no answer: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..count]);
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    bytes.drain(..head_end + 4);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status = status.context("no status line")?.parse()?;
    let split = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        (name.to_lowercase(), value.trim().to_owned())
    };
    let mut answer = Answer {
        status,
        headers: lines.map(split).collect(),
        body: bytes,
    };
    if status == 100 {
        return read(from, is_head);
    }
    let length = answer
        .header("content-length")
        .map(str::parse)
        .transpose()?;
    let length: Option<usize> = if is_head || status == 204 {
        Some(0)
    } else {
        length
    };
    while length.is_none_or(|length| answer.body.len() < length) {
        match from.read(&mut buffer)? {
            0 => break,
            count => answer.body.extend_from_slice(&buffer[..count]),
        }
    }
    if length.is_none() && answer.header("transfer-encoding") == Some("chunked") {
        answer.body = dechunk(&answer.body)?;
    }
    Ok(answer)
}

fn dechunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|part| part == b"\r\n");
        let (size, after) = rest.split_at(end.context("no size of a chunk")?);
        let size = usize::from_str_radix(std::str::from_utf8(size)?, 16)?;
        if size == 0 {
            return Ok(body);
        }
        let chunk = after.get(2..2 + size).context("a chunk is cut")?;
        body.extend_from_slice(chunk);
        rest = after.get(2 + size + 2..).context("a chunk is cut")?;
    }
}
