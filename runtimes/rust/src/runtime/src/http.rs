//! HTTP/1.1 on one connection: heads and bodies in, answers out. Strict where two readers could disagree.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::TcpStream,
    str,
    time::Duration,
};

const HEAD_LIMIT: usize = 128 << 10;
const BODY_LIMIT: usize = 20 << 20;
/// What a caller may go on sending after an early answer until its connection is cut.
const DISCARD_LIMIT: usize = 64 << 20;
/// How long a connection may be idle, or stall in the middle.
const PATIENCE: Duration = Duration::from_secs(60);
const READ_SIZE: usize = 64 << 10;
/// An answer up to this size leaves in one piece.
const COPY_LIMIT: usize = 64 << 10;

/// Why a request is not read to its end.
pub(crate) enum ReadError {
    /// It cannot be understood: the answer's status, after which the connection ends.
    Bad(u16),
    /// The body is beyond the limit; nothing of it is kept.
    TooLarge,
    /// The other side has gone, or stalls.
    Closed,
}

impl From<io::Error> for ReadError {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// A request's head. Header names are lower-cased; repeats are joined, but of `authorization`, which are all kept.
pub(crate) struct Message {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) authorizations: Vec<String>,
    pub(crate) keeps_alive: bool,
    length: usize,
    is_chunked: bool,
    is_read: bool,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn is_invited(&self) -> bool {
        self.header("expect").eq_ignore_ascii_case("100-continue")
    }
}

/// An answer ready to send.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// One accepted socket, and what of its input has not been looked at yet.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        // An answer leaves at once.
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Lets `handle` answer request after request.
    pub(crate) fn serve(&mut self, handle: impl Fn(&mut Self, &mut Message) -> io::Result<()>) {
        let status = loop {
            let mut message = match self.read_head() {
                Ok(message) => message,
                Err(ReadError::Bad(status)) => break status,
                Err(ReadError::TooLarge | ReadError::Closed) => return,
            };
            if handle(self, &mut message).is_err() || !message.keeps_alive {
                return;
            }
            // The rest of the body is read first, so that the caller comes to read the answer.
            match self.discard_body(&mut message) {
                Ok(()) => {}
                Err(ReadError::Bad(status)) => break status,
                Err(ReadError::TooLarge | ReadError::Closed) => return,
            }
        };
        let head = format!(
            "HTTP/1.1 {status} {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            reason(status)
        );
        drop(self.stream.write_all(head.as_bytes()));
    }

    /// The whole body; [`ReadError::TooLarge`] as soon as that is known.
    pub(crate) fn read_body(&mut self, message: &mut Message) -> Result<Vec<u8>, ReadError> {
        if message.is_read {
            return Ok(Vec::new());
        }
        if message.length > BODY_LIMIT {
            return Err(ReadError::TooLarge);
        }
        if message.is_invited() {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if message.is_chunked {
            return self.read_chunked(message, BODY_LIMIT);
        }
        message.is_read = true;
        self.read_exactly(message.length)
    }

    pub(crate) fn answer(&mut self, message: &Message, answer: &Answer) -> io::Result<()> {
        let Answer {
            status,
            headers,
            body,
        } = answer;
        let mut data = format!("HTTP/1.1 {status} {}\r\n", reason(*status));
        for (name, value) in headers {
            data.extend([name, ": ", value, "\r\n"]);
        }
        let is_bodiless = matches!(status, 204 | 304);
        if !is_bodiless {
            data.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        if !message.keeps_alive {
            data.push_str("connection: close\r\n");
        }
        data.push_str("\r\n");
        let mut data = data.into_bytes();
        if is_bodiless || message.method == "HEAD" {
            self.stream.write_all(&data)
        } else if body.len() <= COPY_LIMIT {
            data.extend_from_slice(body);
            self.stream.write_all(&data)
        } else {
            self.stream.write_all(&data)?;
            self.stream.write_all(body)
        }
    }

    fn read_head(&mut self) -> Result<Message, ReadError> {
        let mut seen = 0;
        loop {
            // RFC 9112, 2.2: an empty line before a request line is skipped.
            while self.buffer.starts_with(b"\r\n") {
                self.buffer.drain(..2);
            }
            if let Some(end) = find(&self.buffer, b"\r\n\r\n", seen) {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return parse_head(&head[..end]);
            }
            seen = self.buffer.len().saturating_sub(3);
            self.receive()?;
        }
    }

    /// Some more input, within the limit of a head.
    fn receive(&mut self) -> Result<(), ReadError> {
        let before = self.buffer.len();
        if before > HEAD_LIMIT {
            return Err(ReadError::Bad(431));
        }
        self.buffer.resize(before + READ_SIZE, 0);
        let read = self.stream.read(&mut self.buffer[before..]);
        self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
        if read? == 0 {
            Err(ReadError::Closed)
        } else {
            Ok(())
        }
    }

    fn read_exactly(&mut self, length: usize) -> Result<Vec<u8>, ReadError> {
        let mut body = vec![0; length];
        let there = self.buffer.len().min(length);
        body[..there].copy_from_slice(&self.buffer[..there]);
        self.buffer.drain(..there);
        self.stream.read_exact(&mut body[there..])?;
        Ok(body)
    }

    fn skip(&mut self, mut length: usize) -> Result<(), ReadError> {
        loop {
            let there = self.buffer.len().min(length);
            self.buffer.drain(..there);
            length -= there;
            if length == 0 {
                return Ok(());
            }
            self.receive()?;
        }
    }

    fn read_line(&mut self) -> Result<Vec<u8>, ReadError> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n", 0) {
                let mut line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                line.truncate(end);
                return Ok(line);
            }
            self.receive()?;
        }
    }

    /// Reads on to the next request, where that is not too far. A caller that waits to be invited sends nothing.
    fn discard_body(&mut self, message: &mut Message) -> Result<(), ReadError> {
        if message.is_read {
            return Ok(());
        }
        if message.is_invited() || message.length > DISCARD_LIMIT {
            return Err(ReadError::Closed);
        }
        if !message.is_chunked {
            return self.skip(message.length);
        }
        match self.read_chunked(message, 0) {
            Err(ReadError::TooLarge) if message.is_read => Ok(()),
            other => other.map(drop),
        }
    }

    /// The body; what lies beyond `limit` is read and thrown away, up to a limit of its own.
    fn read_chunked(&mut self, message: &mut Message, limit: usize) -> Result<Vec<u8>, ReadError> {
        let mut body = Vec::new();
        let mut total = 0;
        loop {
            let size = parse_chunk_size(&self.read_line()?)?;
            if size == 0 {
                break;
            }
            total += size;
            if total <= limit {
                body.append(&mut self.read_exactly(size)?);
            } else if total <= DISCARD_LIMIT {
                body = Vec::new();
                self.skip(size)?;
            } else {
                message.keeps_alive = false;
                return Err(ReadError::TooLarge);
            }
            if !self.read_line()?.is_empty() {
                return Err(ReadError::Bad(400));
            }
        }
        while !self.read_line()?.is_empty() {}
        message.is_read = true;
        if total > limit {
            Err(ReadError::TooLarge)
        } else {
            Ok(body)
        }
    }
}

/// Whether a text may be a method or a header's name (RFC 9110, 5.6.2).
pub(crate) fn is_token(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_allowed)
}

fn find(bytes: &[u8], wanted: &[u8], from: usize) -> Option<usize> {
    let at = bytes
        .get(from..)?
        .windows(wanted.len())
        .position(|window| window == wanted)?;
    Some(from + at)
}

fn parse_chunk_size(line: &[u8]) -> Result<usize, ReadError> {
    let text = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let text = str::from_utf8(text.trim_ascii()).unwrap_or_default();
    let is_number =
        (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let size = usize::from_str_radix(text, 16).ok().filter(|_| is_number);
    size.ok_or(ReadError::Bad(400))
}

fn parse_head(head: &[u8]) -> Result<Message, ReadError> {
    if head.contains(&0) {
        return Err(ReadError::Bad(400));
    }
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let words: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, version @ ("HTTP/1.0" | "HTTP/1.1")] = words[..] else {
        return Err(ReadError::Bad(400));
    };
    if !is_token(method) || target.is_empty() {
        return Err(ReadError::Bad(400));
    }
    let mut message = Message {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: HashMap::new(),
        authorizations: Vec::new(),
        keeps_alive: true,
        length: 0,
        is_chunked: false,
        is_read: false,
    };
    for line in lines {
        add_header(&mut message, line)?;
    }
    frame(&mut message, version == "HTTP/1.1")?;
    Ok(message)
}

fn add_header(message: &mut Message, line: &str) -> Result<(), ReadError> {
    let (name, value) = line.split_once(':').ok_or(ReadError::Bad(400))?;
    if !is_token(name) || value.contains(['\r', '\n']) {
        return Err(ReadError::Bad(400));
    }
    let name = name.to_ascii_lowercase();
    let value = value.trim_matches([' ', '\t']);
    if name == "authorization" {
        message.authorizations.push(value.to_owned());
    }
    let Some(known) = message.headers.get_mut(&name) else {
        message.headers.insert(name, value.to_owned());
        return Ok(());
    };
    match &*name {
        "content-length" if known != value => return Err(ReadError::Bad(400)),
        "content-length" | "host" | "content-type" | "authorization" => {}
        "cookie" => known.extend(["; ", value]),
        _ => known.extend([", ", value]),
    }
    Ok(())
}

/// Where the body ends, and whether another request may follow.
fn frame(message: &mut Message, is_current: bool) -> Result<(), ReadError> {
    let length = message
        .headers
        .get("content-length")
        .map_or("0", String::as_str);
    let is_number =
        (1..=18).contains(&length.len()) && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length
        .parse()
        .ok()
        .filter(|_| is_number)
        .ok_or(ReadError::Bad(400))?;
    let coding = message.headers.get("transfer-encoding");
    let is_alone = is_current && !message.headers.contains_key("content-length");
    if coding.is_some_and(|coding| !coding.eq_ignore_ascii_case("chunked") || !is_alone) {
        return Err(ReadError::Bad(400));
    }
    let options = message.header("connection").to_ascii_lowercase();
    message.keeps_alive =
        !options.contains("close") && (is_current || options.contains("keep-alive"));
    message.is_chunked = coding.is_some();
    message.length = length;
    message.is_read = length == 0 && !message.is_chunked;
    Ok(())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        _ => "",
    }
}
