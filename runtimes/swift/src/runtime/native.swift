import Glibc

private let current = {
    var key = pthread_key_t()
    pthread_key_create(&key, nil)
    return key
}()

/// Runs `body` with what the calling thread prints going to `logger`.
func capturing(to logger: ExecutionLog, _ body: () -> Void) {
    pthread_setspecific(current, Unmanaged.passUnretained(logger).toOpaque())
    body()
    pthread_setspecific(current, nil)
}

/// From now on what `print` and C's functions write is asked for its thread: the execution on it gets it; where a thread
/// has none, the only execution that is under way; else the process's own output.
func captureOutput(alone: @escaping () -> ExecutionLog?) {
    onlyExecution = alone
    stdout = open(descriptor: 1)
    stderr = open(descriptor: 2)
}

private nonisolated(unsafe) var onlyExecution: () -> ExecutionLog? = { nil }

private func open(descriptor: Int) -> UnsafeMutablePointer<FILE> {
    let functions = cookie_io_functions_t(
        read: nil,
        write: { descriptor, text, size in
            deliver(UnsafeRawBufferPointer(start: text, count: size), to: Int32(Int(bitPattern: descriptor)))
            return size
        },
        seek: nil, close: nil)
    let cookie = UnsafeMutableRawPointer(bitPattern: descriptor)
    guard let stream = fopencookie(cookie, "w", functions) else { fail("it cannot capture output") }
    // What is buffered would be written by another thread than it came from.
    setvbuf(stream, nil, _IONBF, 0)
    return stream
}

private func deliver(_ text: UnsafeRawBufferPointer, to descriptor: Int32) {
    let own = pthread_getspecific(current).map { Unmanaged<ExecutionLog>.fromOpaque($0).takeUnretainedValue() }
    guard let logger = own ?? onlyExecution() else {
        _ = writeAll(descriptor, text)
        return
    }
    if descriptor == 2 { logger.nativeError(text) } else { logger.native(text) }
}
