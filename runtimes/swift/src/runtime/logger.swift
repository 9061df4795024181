import Foundation
import Glibc

private let recordLimit = 8_000
private let truncated = "... Log truncated due to size limit (8000 characters)"
private let nativeNotice = "Native logs detected. Use context.log() or context.error() for better experience.\n"
private let bufferLimit = 64 << 10
// Callers read 5 MiB of a file and say so when there is more: what lies further back would only fill the disk.
private let fileLimit = 5 << 20 + 64 << 10

/// The buffered text of one log file. It is written when there is something to write, so that a silent function costs
/// no file; failing to write it never fails the execution.
private struct LogFile {
    let path: String
    var buffer: [UInt8] = []
    var room = fileLimit

    mutating func write(_ text: some Sequence<UInt8>) {
        if room <= 0 { return }
        buffer.append(contentsOf: text.prefix(room))
        if buffer.count > bufferLimit { flush() }
    }

    mutating func flush() {
        if buffer.isEmpty { return }
        room -= buffer.count
        if !append(buffer, to: path) { room = 0 }
        buffer.removeAll()
    }
}

/// Whether all bytes are at the end of the file now.
@discardableResult
func append(_ bytes: [UInt8], to path: String) -> Bool {
    let descriptor = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o644)
    if descriptor < 0 { return false }
    defer { close(descriptor) }
    return bytes.withUnsafeBytes { writeAll(descriptor, $0) }
}

func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Bool {
    var rest = bytes[...]
    while !rest.isEmpty {
        let written = write(descriptor, UnsafeRawBufferPointer(rebasing: rest).baseAddress, rest.count)
        if written < 0 && errno != EINTR { return false }
        rest = rest.dropFirst(max(written, 0))
    }
    return true
}

/// The log of one execution; after `close` nothing is written any more. An empty id means that its caller wants none.
final class ExecutionLog: @unchecked Sendable {
    let id: String
    private let lock = NSLock()
    private var isOpen: Bool
    private var logs: LogFile
    private var errors: LogFile
    private var isNative = false
    private var isMidLine = false

    init(directory: String, id: String) {
        self.id = id
        isOpen = !id.isEmpty
        logs = LogFile(path: "\(directory)/\(id)_logs.log")
        errors = LogFile(path: "\(directory)/\(id)_errors.log")
    }

    func log(_ messages: [Any]) {
        write {
            endLine()
            logs.write(record(messages).utf8)
        }
    }

    func error(_ messages: [Any]) {
        write { errors.write(record(messages).utf8) }
    }

    /// What the function printed by other means than its context.
    func native(_ text: UnsafeRawBufferPointer) {
        write {
            if !isNative {
                endLine()
                logs.write(nativeNotice.utf8)
            }
            isNative = true
            logs.write(text)
            isMidLine = text.last != UInt8(ascii: "\n")
        }
    }

    /// The same to standard error, where Swift says why it ends the process: that is on disk before it happens.
    func nativeError(_ text: UnsafeRawBufferPointer) {
        write {
            errors.write(text)
            flushFiles()
        }
    }

    func flush() {
        write { flushFiles() }
    }

    func close() {
        write {
            flushFiles()
            isOpen = false
        }
    }

    private func write(_ act: () -> Void) {
        lock.lock()
        defer { lock.unlock() }
        if isOpen { act() }
    }

    private func flushFiles() {
        endLine()
        logs.flush()
        errors.flush()
    }

    private func endLine() {
        if isMidLine { logs.write("\n".utf8) }
        isMidLine = false
    }
}

/// The id asked for where it is a safe file name, else one of the runtime's own; empty where logging is off.
func logID(_ message: Message, isDevelopment: Bool) -> String {
    guard ["", "enabled"].contains(message["x-open-runtimes-logging"] ?? "") else { return "" }
    let wanted = message["x-open-runtimes-log-id"] ?? ""
    if isSafe(wanted) { return wanted }
    if isDevelopment && wanted.isEmpty { return "dev" }
    // Seconds (8 hexadecimal digits), fraction of a second (5), random (7).
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return hex(now.tv_sec, 8) + hex(now.tv_nsec / 1000, 5) + hex(Int.random(in: 0..<1 << 28), 7)
}

private func hex(_ number: Int, _ width: Int) -> String {
    let digits = String(number, radix: 16)
    return String(repeating: "0", count: max(width - digits.count, 0)) + digits
}

private func isSafe(_ id: String) -> Bool {
    let bytes = id.utf8
    let isAllowed = { (byte: UInt8) in isAlphanumeric(byte) || "._-".utf8.contains(byte) }
    return (1...128).contains(bytes.count) && bytes.first != UInt8(ascii: ".") && bytes.allSatisfy(isAllowed)
}

private func record(_ messages: [Any]) -> String {
    let text = messages.map(toText).joined(separator: " ")
    // No text has more characters than bytes.
    let isLong = text.utf8.count > recordLimit && text.dropFirst(recordLimit).first != nil
    return (isLong ? text.prefix(recordLimit) + truncated : text) + "\n"
}

/// A text as it is, an error's own words, and what JSON can express as that.
private func toText(_ value: Any) -> String {
    switch value {
    case let text as String: return text
    case let error as Error: return describe(error)
    case let optional as AnyOptional: return optional.unwrapped.map(toText) ?? "nil"
    case let set as Set<AnyHashable>: return toText(Array(set))
    case is [Any], is [String: Any]:
        return (try? encodeJSON(value)).map { String(decoding: $0, as: UTF8.self) } ?? String(describing: value)
    default: return String(describing: value)
    }
}
