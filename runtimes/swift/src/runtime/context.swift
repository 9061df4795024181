/// What a function is called with.
public final class RuntimeContext: @unchecked Sendable {
    public let req: RuntimeRequest
    public let res = RuntimeResponse()
    private let logger: ExecutionLog

    init(req: RuntimeRequest, logger: ExecutionLog) {
        self.req = req
        self.logger = logger
    }

    /// Writes one record, the texts of the messages joined by spaces.
    public func log(_ messages: Any...) {
        logger.log(messages)
    }

    /// Writes one record to the error log.
    public func error(_ messages: Any...) {
        logger.error(messages)
    }
}
