import Foundation
import Glibc

private let headLimit = 128 << 10
private let bodyLimit = 20 << 20
// What a caller may go on sending after an early answer until its connection is cut.
private let discardLimit = 64 << 20
private let readSize = 256 << 10
// How long a caller may take for a part of a request, and a connection be idle.
private let patienceS = 60
private let reasons = [
    200: "OK", 204: "No Content", 301: "Moved Permanently", 302: "Found", 304: "Not Modified", 400: "Bad Request",
    401: "Unauthorized", 404: "Not Found", 413: "Content Too Large", 500: "Internal Server Error",
]

/// A request that cannot be understood: `status` is the answer, after which the connection ends.
struct HTTPError: Error {
    let status: Int
}

/// The body is beyond the limit; nothing of it is kept.
struct BodyTooLarge: Error {}

/// The other side has gone, or stalls.
struct Closed: Error {}

/// A request's head. Header names are lower-cased, repeats stand one after the other.
struct Message {
    let method: String
    let target: String
    var headers: [(name: String, value: String)] = []
    var length = 0
    var isChunked = false
    var keepsAlive = true
    var isRead = false

    /// The first value of that name.
    subscript(_ name: String) -> String? {
        headers.first { $0.name == name }?.value
    }

    var isInvited: Bool { self["expect"]?.lowercased() == "100-continue" }
}

/// HTTP/1.1 on one accepted socket: heads and bodies in, answers out. Strict where two readers could disagree.
final class Connection: @unchecked Sendable {
    private let socket: Int32
    private var buffer: [UInt8] = []
    /// What of `buffer` has been taken.
    private var start = 0

    init(socket: Int32) {
        self.socket = socket
        var patience = timeval(tv_sec: patienceS, tv_usec: 0)
        let size = socklen_t(MemoryLayout<timeval>.size)
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, size)
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, size)
    }

    /// Lets `handle` answer request after request, until one side ends.
    func serve(_ handle: (inout Message, Connection) -> Void) {
        defer { close(socket) }
        do {
            while true {
                var message = try readHead()
                handle(&message, self)
                // The rest of the body is read first, so that the caller comes to read the answer.
                guard message.keepsAlive, try message.isRead || discardBody(&message) else { return }
            }
        } catch let error as HTTPError {
            send(Rendered(status: error.status, headers: [("connection", "close")]))
        } catch {}
    }

    /// The whole body; throws `BodyTooLarge` as soon as that is known.
    func readBody(_ message: inout Message) throws -> Data {
        if message.isRead { return Data() }
        if message.length > bodyLimit { throw BodyTooLarge() }
        if message.isInvited { transmit(Data("HTTP/1.1 100 Continue\r\n\r\n".utf8)) }
        var body = Data()
        if message.isChunked {
            body = try readChunked(&message, limit: bodyLimit)
        } else {
            try take(message.length) { body.append(contentsOf: $0) }
        }
        message.isRead = true
        return body
    }

    func send(_ response: Rendered, isHead: Bool = false) {
        let isBodiless = response.status == 204 || response.status == 304
        var text = "HTTP/1.1 \(response.status) \(reasons[response.status] ?? "")\r\n"
        for (name, value) in response.headers { text += "\(name): \(value)\r\n" }
        if !isBodiless { text += "content-length: \(response.body.count)\r\n" }
        var data = Data((text + "\r\n").utf8)
        if !isHead && !isBodiless { data.append(response.body) }
        transmit(data)
    }

    /// Ends the conversation, whoever else is about to read or write.
    func cut() {
        shutdown(socket, Int32(SHUT_RDWR))
    }

    private func transmit(_ data: Data) {
        data.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) in
            var rest = bytes[...]
            while !rest.isEmpty {
                let base = UnsafeRawBufferPointer(rebasing: rest).baseAddress
                let sent = Glibc.send(socket, base, rest.count, Int32(MSG_NOSIGNAL))
                // The caller has gone; the rest of this connection's life is short.
                if sent < 0 && errno != EINTR { return cut() }
                rest = rest.dropFirst(max(sent, 0))
            }
        }
    }

    /// Some more bytes.
    private func receive() throws {
        if start > 0 {
            buffer.removeFirst(start)
            start = 0
        }
        let count = buffer.count
        buffer.append(contentsOf: repeatElement(0, count: readSize))
        let received = buffer.withUnsafeMutableBytes { bytes in
            var received = -1
            repeat { received = recv(socket, bytes.baseAddress! + count, readSize, 0) } while received < 0 && errno == EINTR
            return received
        }
        buffer.removeLast(readSize - max(received, 0))
        if received <= 0 { throw Closed() }
    }

    /// The bytes up to `mark`, which is taken too.
    private func take(until mark: StaticString) throws -> [UInt8] {
        var searched = start
        while true {
            let found = buffer.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) -> Int? in
                guard let base = bytes.baseAddress else { return nil }
                let size = mark.utf8CodeUnitCount
                let from = max(searched - size + 1, start)
                let at = memmem(base + from, bytes.count - from, mark.utf8Start, size)
                return at.map { UnsafeRawPointer($0) - base }
            }
            if let found {
                defer { start = found + mark.utf8CodeUnitCount }
                return Array(buffer[start..<found])
            }
            if buffer.count - start > headLimit { throw HTTPError(status: 431) }
            searched = buffer.count - start
            try receive()
        }
    }

    /// The next `length` bytes, as they come.
    private func take(_ length: Int, _ each: (ArraySlice<UInt8>) -> Void) throws {
        var length = length
        while length > 0 {
            if start == buffer.count { try receive() }
            let part = buffer[start..<min(start + length, buffer.count)]
            each(part)
            start += part.count
            length -= part.count
        }
    }

    private func readHead() throws -> Message {
        // RFC 9112, 2.2: an empty line before a request line is skipped.
        repeat {
            while buffer.count - start < 2 { try receive() }
            if buffer[start] == 13 && buffer[start + 1] == 10 { start += 2 } else { break }
        } while true
        return try parseHead(take(until: "\r\n\r\n"))
    }

    /// Reads on to the next request; false where that is too far. A caller that waits to be invited sends nothing.
    private func discardBody(_ message: inout Message) throws -> Bool {
        if message.isInvited || message.length > discardLimit { return false }
        do {
            if message.isChunked { _ = try readChunked(&message, limit: 0) } else { try take(message.length) { _ in } }
            return true
        } catch is BodyTooLarge {
            return message.isRead
        }
    }

    /// The body; what lies beyond `limit` is read and thrown away, up to a limit of its own.
    private func readChunked(_ message: inout Message, limit: Int) throws -> Data {
        var body = Data()
        var total = 0
        while case let size = try readChunkSize(), size > 0 {
            total += size
            if total > discardLimit {
                message.keepsAlive = false
                throw BodyTooLarge()
            }
            if total > limit { body = Data() }
            try take(size) { if total <= limit { body.append(contentsOf: $0) } }
            guard try take(until: "\r\n").isEmpty else { throw HTTPError(status: 400) }
        }
        while try !take(until: "\r\n").isEmpty {}
        message.isRead = true
        if total > limit { throw BodyTooLarge() }
        return body
    }

    private func readChunkSize() throws -> Int {
        let line = try take(until: "\r\n").prefix { $0 != UInt8(ascii: ";") }
        let text = String(decoding: line, as: UTF8.self).trimmingCharacters(in: .whitespaces)
        guard (1...8).contains(text.utf8.count), text.utf8.allSatisfy(isAlphanumeric), let size = Int(text, radix: 16) else {
            throw HTTPError(status: 400)
        }
        return size
    }
}

func parseHead(_ head: [UInt8]) throws -> Message {
    var lines = head.split(separator: 10, omittingEmptySubsequences: false)[...]
    // All but the last line end with a carriage return; there is none elsewhere.
    let end = lines.indices.last
    for index in lines.indices {
        if index != end, lines[index].popLast() != 13 { throw HTTPError(status: 400) }
        if lines[index].contains(13) || lines[index].contains(0) { throw HTTPError(status: 400) }
    }
    let words = lines.removeFirst().split(separator: 32, omittingEmptySubsequences: false)
    guard words.count == 3, isToken(words[0]), !words[1].isEmpty else { throw HTTPError(status: 400) }
    let version = String(decoding: words[2], as: UTF8.self)
    guard version == "HTTP/1.1" || version == "HTTP/1.0" else { throw HTTPError(status: 400) }
    var message = Message(method: String(decoding: words[0], as: UTF8.self), target: String(decoding: words[1], as: UTF8.self))
    message.headers.reserveCapacity(lines.count)
    for line in lines {
        guard let colon = line.firstIndex(of: UInt8(ascii: ":")), isToken(line[..<colon]) else { throw HTTPError(status: 400) }
        let isBlank = { (byte: UInt8) in byte == 32 || byte == 9 }
        let value = line[(colon + 1)...].drop(while: isBlank)
        let last = value.lastIndex { !isBlank($0) }
        let name = String(decoding: line[..<colon], as: UTF8.self).lowercased()
        message.headers.append((name, last.map { String(decoding: value[...$0], as: UTF8.self) } ?? ""))
    }
    try frame(&message, version: version)
    return message
}

/// Where the body ends, and whether another request may follow.
private func frame(_ message: inout Message, version: String) throws {
    let lengths = message.headers.filter { $0.name == "content-length" }.map(\.value)
    let length = lengths.first ?? "0"
    guard lengths.allSatisfy({ $0 == length }), (1...18).contains(length.utf8.count),
        length.utf8.allSatisfy({ (48...57).contains($0) }), let length = Int(length)
    else { throw HTTPError(status: 400) }
    message.length = length
    let codings = message.headers.filter { $0.name == "transfer-encoding" }.map(\.value)
    message.isChunked = !codings.isEmpty
    if message.isChunked {
        let isClear = codings.count == 1 && codings[0].lowercased() == "chunked" && lengths.isEmpty && version == "HTTP/1.1"
        guard isClear else { throw HTTPError(status: 400) }
    }
    let options = message["connection"]?.lowercased() ?? ""
    message.keepsAlive = !options.contains("close") && (version == "HTTP/1.1" || options.contains("keep-alive"))
    message.isRead = length == 0 && !message.isChunked
}

func isAlphanumeric(_ byte: UInt8) -> Bool {
    (48...57).contains(byte) || (65...90).contains(byte) || (97...122).contains(byte)
}

/// Whether the bytes may be a header's name or a method (RFC 9110, 5.6.2).
func isToken(_ bytes: some Collection<UInt8>) -> Bool {
    !bytes.isEmpty && bytes.allSatisfy { isAlphanumeric($0) || "!#$%&'*+-.^_`|~".utf8.contains($0) }
}
