import Foundation

/// An error that is all text.
struct Failure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}

/// An error that knows where it was thrown, which Swift's own do not.
public struct AnnotatedError: LocalizedError, CustomStringConvertible {
    public let error: Error
    public let file: String
    public let line: Int

    public var description: String { "\(describe(error))\n    at \(file):\(line)" }
    public var errorDescription: String? { description }
}

/// An error of this message, with the place that asks for it.
public func annotatedError(_ message: String, file: String = #file, line: Int = #line) -> AnnotatedError {
    AnnotatedError(error: Failure(message), file: file, line: line)
}

/// The error, with the place that asks for it.
public func annotateError(_ error: Error, file: String = #file, line: Int = #line) -> AnnotatedError {
    AnnotatedError(error: error, file: file, line: line)
}

/// What the error says of itself.
func describe(_ error: Error) -> String {
    (error as? LocalizedError)?.errorDescription ?? String(describing: error)
}
