"""HTTP/1.1 on one connection: heads and bodies in, answers out. Strict where two readers could disagree."""

import socket
import struct
import time

HEAD_LIMIT = 128 * 1024
BODY_LIMIT = 20 * 1024 * 1024
# What a caller may go on sending after an early answer until its connection is cut.
DISCARD_LIMIT = 64 * 1024 * 1024
# How long a thread stays with a connection for its next request, and with one that stalls in the middle.
LINGER_S = 0.1
STALL_S = 60
SEND_S = 60

REASONS = {200: "OK", 204: "No Content", 301: "Moved Permanently", 302: "Found", 304: "Not Modified", 400: "Bad Request",
           401: "Unauthorized", 404: "Not Found", 413: "Content Too Large", 500: "Internal Server Error",
           503: "Service Unavailable"}
TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class HttpError(Exception):
    """A message that cannot be understood: `status` is the answer, after which the connection ends."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class BodyTooLarge(Exception):
    """The body is beyond the limit; nothing of it is kept."""


class Closed(Exception):
    """The other side has gone, or stalls."""


class Message:
    """A request's head. `headers` has lower-cased names; repeats are joined. `repeated` keeps all authorizations."""

    __slots__ = ("method", "target", "headers", "authorizations", "length", "is_chunked", "keeps_alive", "is_read")


class Connection:
    """One accepted socket."""

    def __init__(self, accepted):
        accepted.setblocking(True)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(LINGER_S))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(SEND_S))
        self.socket = accepted
        self.buffer = bytearray()
        self.is_open = True

    def fileno(self):
        return self.socket.fileno()

    def close(self):
        self.is_open = False
        self.socket.close()

    def serve(self, handle):
        """Lets `handle(message, connection)` answer request after request. True: idle, still open."""
        try:
            while True:
                message = self.read_head()
                if message is None:
                    return True
                handle(message, self)
                if not self.is_open or not message.keeps_alive:
                    break
                if not message.is_read and not self.discard_body(message):
                    break
        except HttpError as error:
            self.transmit(encode_head(error.status, [("content-length", "0"), ("connection", "close")]))
        except (Closed, OSError):
            pass
        self.close()
        return False

    # Reading

    def read_head(self):
        """The next request's head; None where none begins for a while."""
        end = self.buffer.find(b"\r\n\r\n")
        stalled_at = None
        while end < 0:
            if len(self.buffer) > HEAD_LIMIT:
                raise HttpError(431)
            try:
                chunk = self.socket.recv(65536)
            except (BlockingIOError, InterruptedError):
                if not self.buffer:
                    return None
                stalled_at = stalled_at or time.monotonic() + STALL_S
                if time.monotonic() > stalled_at:
                    raise Closed
                continue
            if not chunk:
                raise Closed
            seen = max(0, len(self.buffer) - 3)
            self.buffer += chunk
            if self.buffer.startswith(b"\r\n"):
                # RFC 9112, 2.2: an empty line before a request line is skipped.
                del self.buffer[:2]
                seen = 0
            end = self.buffer.find(b"\r\n\r\n", seen)
        head = self.buffer[:end].decode("latin-1")
        del self.buffer[: end + 4]
        return parse_head(head)

    def read_body(self, message):
        """The whole body; `BodyTooLarge` as soon as that is known."""
        length = message.length
        if length == 0 and not message.is_chunked:
            message.is_read = True
            return b""
        if length > BODY_LIMIT:
            raise BodyTooLarge
        self.invite(message)
        if message.is_chunked:
            body = self.read_chunked(message, BODY_LIMIT)
        else:
            body = self.read_exactly(length)
        message.is_read = True
        return body

    def invite(self, message):
        """Tells a caller who asks first that the body is welcome."""
        if message.headers.get("expect", "").lower() == "100-continue":
            self.transmit(b"HTTP/1.1 100 Continue\r\n\r\n")

    def discard_body(self, message):
        """Reads on to the next request; False where that is too far. A caller that waits to be invited sends nothing."""
        if message.headers.get("expect", "").lower() == "100-continue":
            return False
        try:
            if message.is_chunked:
                self.read_chunked(message, 0)
            elif message.length > DISCARD_LIMIT:
                return False
            else:
                self.skip(message.length)
        except BodyTooLarge:
            return message.is_read
        return True

    def receive(self):
        """Some more bytes of a message that has begun."""
        until = time.monotonic() + STALL_S
        while True:
            try:
                chunk = self.socket.recv(262144)
            except (BlockingIOError, InterruptedError):
                if time.monotonic() > until:
                    raise Closed from None
                continue
            if not chunk:
                raise Closed
            return chunk

    def read_exactly(self, length):
        parts = [bytes(self.buffer[:length])]
        del self.buffer[:length]
        missing = length - len(parts[0])
        while missing > 0:
            chunk = self.receive()
            if len(chunk) > missing:
                self.buffer += chunk[missing:]
                chunk = chunk[:missing]
            parts.append(chunk)
            missing -= len(chunk)
        return b"".join(parts)

    def skip(self, length):
        taken = min(length, len(self.buffer))
        del self.buffer[:taken]
        length -= taken
        while length > 0:
            chunk = self.receive()
            if len(chunk) > length:
                self.buffer += chunk[length:]
            length -= len(chunk)

    def read_line(self):
        while True:
            end = self.buffer.find(b"\r\n")
            if end >= 0:
                line = bytes(self.buffer[:end])
                del self.buffer[: end + 2]
                return line
            if len(self.buffer) > HEAD_LIMIT:
                raise HttpError(431)
            self.buffer += self.receive()

    def read_chunked(self, message, limit):
        """The body; what lies beyond `limit` is read and thrown away, up to a limit of its own."""
        parts = []
        total = 0
        while True:
            size_text = self.read_line().split(b";", 1)[0].strip()
            if not size_text or len(size_text) > 8 or size_text.strip(b"0123456789abcdefABCDEF"):
                raise HttpError(400)
            size = int(size_text, 16)
            if size == 0:
                break
            total += size
            if total <= limit:
                parts.append(self.read_exactly(size))
            elif total <= DISCARD_LIMIT:
                parts.clear()
                self.skip(size)
            else:
                message.keeps_alive = False
                raise BodyTooLarge
            if self.read_line():
                raise HttpError(400)
        while self.read_line():
            pass
        message.is_read = True
        if total > limit:
            raise BodyTooLarge
        return b"".join(parts)

    # Writing

    def transmit(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            # The caller has gone; the rest of this connection's life is short.
            self.close()

    def cut(self):
        """Ends the connection from another thread than the one that serves it, which then closes it."""
        self.is_open = False
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def timeval(seconds):
    """A `struct timeval`, see socket(7)."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))


def encode_head(status, headers):
    """`headers` is a list of pairs. Raises ValueError for what cannot be sent."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, '')}\r\n"]
    for name, value in headers:
        if "\r" in value or "\n" in value or "\0" in value:
            raise ValueError(f"Invalid value of header {name}.")
        if not name or not TOKEN.issuperset(name):
            raise ValueError(f"Invalid header name: {name!r}.")
        lines.append(f"{name}: {value}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")


def parse_head(head):
    request_line, *lines = head.split("\r\n")
    words = request_line.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not words[1] or not TOKEN.issuperset(words[0]):
        raise HttpError(400)
    message = Message()
    message.method, message.target, version = words
    message.headers = headers = {}
    message.authorizations = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or not TOKEN.issuperset(name):
            raise HttpError(400)
        name = name.lower()
        value = value.strip(" \t")
        if name == "authorization":
            message.authorizations.append(value)
        if name not in headers:
            headers[name] = value
        elif name == "content-length":
            if value != headers[name]:
                raise HttpError(400)
        elif name not in ("host", "content-type", "authorization"):
            headers[name] += ("; " if name == "cookie" else ", ") + value
    frame(message, version)
    return message


def frame(message, version):
    """Where the body ends, and whether another request may follow."""
    headers = message.headers
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 18:
        raise HttpError(400)
    message.length = int(length)
    coding = headers.get("transfer-encoding")
    message.is_chunked = coding is not None
    if coding is not None and (coding.lower() != "chunked" or "content-length" in headers or version == "HTTP/1.0"):
        raise HttpError(400)
    options = headers.get("connection", "").lower()
    message.keeps_alive = "close" not in options and (version == "HTTP/1.1" or "keep-alive" in options)
    message.is_read = message.length == 0 and not message.is_chunked
