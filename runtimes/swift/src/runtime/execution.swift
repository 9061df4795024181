import Foundation
import Glibc

private let unauthorized = "Unauthorized. Provide correct \"x-open-runtimes-secret\" header."
private let badTimeout = "Header \"x-open-runtimes-timeout\" must be an integer greater than 0."
private let maxTimeoutS = 2_147_483

/// What a function's file has as `main`.
public typealias Function = @Sendable (RuntimeContext) async throws -> RuntimeOutput

/// One execution. Whoever claims it first answers it: its thread, or the deadline.
final class Execution: @unchecked Sendable {
    let logger: ExecutionLog
    let deadline: timespec?
    private let connection: Connection
    private let isHead: Bool
    private let lock = NSLock()
    private var isClaimed = false

    init(_ message: Message, _ connection: Connection, logger: ExecutionLog, timeoutS: Int?) {
        (self.connection, self.logger) = (connection, logger)
        isHead = message.method == "HEAD"
        deadline = timeoutS.map { seconds in
            var deadline = now()
            deadline.tv_sec += seconds
            return deadline
        }
    }

    /// Answers, unless that has been done; its log is complete before.
    func answer(_ response: Rendered) -> Bool {
        if !claim() { return false }
        logger.close()
        var response = response
        response.headers.append(("x-open-runtimes-log-id", logger.id))
        connection.send(response, isHead: isHead)
        return true
    }

    /// Answers in the function's place. Nothing can end its thread: it goes on, unheard.
    func expire() {
        logger.error(["Execution timed out."])
        var response = Rendered(status: 500)
        response.headers.append(("connection", "close"))
        if answer(response) { connection.cut() }
    }

    private func claim() -> Bool {
        lock.lock()
        defer { lock.unlock() }
        defer { isClaimed = true }
        return !isClaimed
    }
}

/// All executions of this process.
final class Executions: @unchecked Sendable {
    private let settings: Settings
    private let function: Function
    private let active = Active()

    init(settings: Settings, function: @escaping Function) {
        (self.settings, self.function) = (settings, function)
    }

    var isIdle: Bool { active.isEmpty }

    /// The log of the execution under way, where there is one only.
    var onlyLog: ExecutionLog? { active.only?.logger }

    /// Saves what executions have logged so far: the process ends.
    func flush() {
        active.all.forEach { $0.logger.flush() }
    }

    /// Answers executions whose time is over; never returns.
    func watch() -> Never {
        while true { active.expired().forEach { $0.expire() } }
    }

    /// Takes a request from its head to its answer, in the protocol's order: special paths, authentication, timeout, log,
    /// body, function, response.
    func handle(_ message: inout Message, _ connection: Connection, on thread: ThreadExecutor) {
        switch splitOnce(message.target, at: "?").0 {
        case "/__opr/health": return connection.reply(200, "OK", to: message)
        case "/__opr/timings":
            let timings = FileManager.default.contents(atPath: settings.timingsFile) ?? Data()
            return connection.reply(200, String(decoding: timings, as: UTF8.self), to: message)
        default: break
        }
        if !settings.secret.isEmpty && !isEqual(message["x-open-runtimes-secret"] ?? "", settings.secret) {
            return connection.reply(401, unauthorized, to: message)
        }
        let text = message["x-open-runtimes-timeout"] ?? ""
        let timeoutS = parseTimeout(text)
        if timeoutS == nil && !text.isEmpty { return connection.reply(500, badTimeout, to: message) }
        let id = logID(message, isDevelopment: settings.isDevelopment)
        let logger = ExecutionLog(directory: settings.logsDirectory, id: id)
        let body: Data
        do {
            body = try connection.readBody(&message)
        } catch {
            message.keepsAlive = message.keepsAlive && error is BodyTooLarge
            let execution = Execution(message, connection, logger: logger, timeoutS: nil)
            _ = execution.answer(Rendered(status: error is BodyTooLarge ? 413 : 400))
            return
        }
        let execution = Execution(message, connection, logger: logger, timeoutS: timeoutS)
        active.insert(execution)
        defer { active.remove(execution) }
        let request = RuntimeRequest(message, body: body, settings: settings)
        var result = Rendered(status: 500)
        capturing(to: logger) { result = call(request, logger, on: thread) }
        if !execution.answer(result) { message.keepsAlive = false }
    }

    /// Runs the function; what it throws is its error.
    private func call(_ request: RuntimeRequest, _ logger: ExecutionLog, on thread: ThreadExecutor) -> Rendered {
        let context = RuntimeContext(req: request, logger: logger)
        let result = Result()
        let (function, entrypoint) = (function, settings.entrypoint)
        thread.run {
            do {
                let output = try await function(context)
                if let error = request.bodyError { throw error }
                result.rendered = try render(output)
            } catch {
                let place = error is AnnotatedError || entrypoint.isEmpty ? "" : "\n    at \(entrypoint)"
                logger.error([describe(error) + place])
            }
        }
        return result.rendered
    }
}

private final class Result: @unchecked Sendable {
    var rendered = Rendered(status: 500)
}

extension Connection {
    /// An answer of the runtime itself, outside any execution.
    fileprivate func reply(_ status: Int, _ text: String, to message: Message) {
        send(Rendered(status: status, body: Data(text.utf8)), isHead: message.method == "HEAD")
    }
}

/// In a time that does not depend on where the two differ.
private func isEqual(_ given: String, _ secret: String) -> Bool {
    let (given, secret) = (Array(given.utf8), Array(secret.utf8))
    var difference = given.count ^ secret.count
    for index in secret.indices {
        difference |= Int(secret[index] ^ (given.isEmpty ? 0 : given[index % given.count]))
    }
    return difference == 0
}

/// Whole seconds; nil for what is none.
private func parseTimeout(_ text: String) -> Int? {
    guard !text.isEmpty, text.utf8.allSatisfy({ (48...57).contains($0) }) else { return nil }
    let seconds = min(Int(text) ?? maxTimeoutS, maxTimeoutS)
    return seconds > 0 ? seconds : nil
}
