import Dispatch
import Glibc

private let backlog: Int32 = 4096
/// How long a stopping server waits for executions that are under way. Seconds.
private let drainS = 5

/// Owns the listening socket, the signals and the life of the process; what a request means is `Executions`' matter. It
/// binds, announces readiness, and serves until a signal.
public func serve(_ function: @escaping Function) -> Never {
    let settings = Settings.fromEnvironment()
    // As PID 1 a signal without a handler is ignored; until there is something to finish, one ends the process at once.
    for stop in [SIGTERM, SIGINT] { signal(stop) { _ in _exit(0) } }
    signal(SIGPIPE, SIG_IGN)
    let listener = listen(port: settings.port)
    _ = "HTTP server successfully started!\n".withCString { write(1, $0, strlen($0)) }
    noteStartup(settings)
    let executions = Executions(settings: settings, function: function)
    captureOutput { executions.onlyLog }
    let isStarted = startThread { drainAfterSignal(listener, executions) }
        && startThread { executions.watch() }
        && startThread { accept(listener, executions) }
    if !isStarted { fail("it cannot start threads") }
    running = executions
    atexit { running?.flush() }
    // What functions ask of the main actor.
    dispatchMain()
}

private nonisolated(unsafe) var running: Executions?
private nonisolated(unsafe) var signals: (read: Int32, write: Int32) = (-1, -1)

func fail(_ reason: String) -> Never {
    _ = "HTTP server failed: \(reason)\n".withCString { write(2, $0, strlen($0)) }
    _exit(1)
}

/// All interfaces, both families where there are both.
private func listen(port: UInt16) -> Int32 {
    let stream = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
    var (yes, no): (Int32, Int32) = (1, 0)
    let size = socklen_t(MemoryLayout<Int32>.size)
    func bound<Address>(_ family: Int32, _ address: Address) -> Int32? {
        let socket = socket(family, stream, 0)
        guard socket >= 0 else { return nil }
        setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, size)
        // Accepted sockets inherit it: an answer leaves at once.
        setsockopt(socket, Int32(IPPROTO_TCP), TCP_NODELAY, &yes, size)
        if family == AF_INET6 { setsockopt(socket, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &no, size) }
        var address = address
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(socket, __CONST_SOCKADDR_ARG(__sockaddr__: $0), socklen_t(MemoryLayout<Address>.size))
            }
        }
        if result == 0 && Glibc.listen(socket, backlog) == 0 { return socket }
        close(socket)
        return nil
    }
    var six = sockaddr_in6()
    (six.sin6_family, six.sin6_port, six.sin6_addr) = (sa_family_t(AF_INET6), port.bigEndian, in6addr_any)
    if let socket = bound(AF_INET6, six) { return socket }
    var four = sockaddr_in()
    (four.sin_family, four.sin_port) = (sa_family_t(AF_INET), port.bigEndian)
    guard let socket = bound(AF_INET, four) else { fail("port \(port): \(String(cString: strerror(errno)))") }
    return socket
}

/// A thread for each connection, which runs what comes through it.
private func accept(_ listener: Int32, _ executions: Executions) {
    while true {
        let socket = accept4(listener, __SOCKADDR_ARG(__sockaddr__: nil), nil, Int32(SOCK_CLOEXEC.rawValue))
        if socket < 0 {
            if errno == EINVAL { return }
            // Out of descriptors or memory: let others finish.
            if errno != EINTR && errno != ECONNABORTED { usleep(10_000) }
            continue
        }
        let isStarted = startThread {
            let thread = ThreadExecutor()
            Connection(socket: socket).serve { executions.handle(&$0, $1, on: thread) }
        }
        if !isStarted { close(socket) }
    }
}

private func drainAfterSignal(_ listener: Int32, _ executions: Executions) {
    var ends: [Int32] = [-1, -1]
    if pipe2(&ends, O_CLOEXEC) != 0 { fail("it cannot wait for signals") }
    signals = (ends[0], ends[1])
    for stop in [SIGTERM, SIGINT] { signal(stop) { _ in _ = write(signals.write, "x", 1) } }
    var byte: UInt8 = 0
    while read(signals.read, &byte, 1) < 0 && errno == EINTR {}
    // The accepting thread's call ends by it.
    shutdown(listener, Int32(SHUT_RD))
    let end = now().tv_sec + drainS
    while !executions.isIdle && now().tv_sec < end { usleep(5_000) }
    executions.flush()
    _exit(0)
}

/// The `startup` metric, where the start lifecycle told when it began. Timings are a help, not a need.
private func noteStartup(_ settings: Settings) {
    guard let began = settings.startupBegan else { return }
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    let taken = Double(now.tv_sec) + Double(now.tv_nsec) / 1e9 - began
    let milliseconds = Int((taken * 1000).rounded())
    let fraction = String(1000 + milliseconds % 1000).dropFirst()
    append(Array("startup=\(milliseconds / 1000).\(fraction)\n".utf8), to: settings.timingsFile)
}
