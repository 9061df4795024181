import Foundation

let plain = "text/plain; charset=utf-8"

/// What a function returns. Cookies of `set-cookie` are separated by line ends.
public struct RuntimeOutput: Sendable {
    public let body: Data
    public let statusCode: Int
    public let headers: [String: String]

    public init(body: Data = Data(), statusCode: Int = 200, headers: [String: String] = [:]) {
        (self.body, self.statusCode, self.headers) = (body, statusCode, headers)
    }

    public init(_ body: Data, _ statusCode: Int, _ headers: [String: String]) {
        self.init(body: body, statusCode: statusCode, headers: headers)
    }
}

/// Makes outputs and sends nothing: the one that is returned counts.
public struct RuntimeResponse: Sendable {
    public func text(_ body: String, statusCode: Int = 200, headers: [String: String] = [:]) -> RuntimeOutput {
        binary(Data(body.utf8), statusCode: statusCode, headers: headers)
    }

    /// The old name of `text`.
    public func send(_ body: String, statusCode: Int = 200, headers: [String: String] = [:]) -> RuntimeOutput {
        text(body, statusCode: statusCode, headers: headers)
    }

    public func json(
        _ body: [String: Any?], statusCode: Int = 200, headers: [String: String] = [:]
    ) throws -> RuntimeOutput {
        let headers = with(headers, "content-type", "application/json")
        return binary(try encodeJSON(body), statusCode: statusCode, headers: headers)
    }

    public func binary(_ body: Data, statusCode: Int = 200, headers: [String: String] = [:]) -> RuntimeOutput {
        RuntimeOutput(body: body, statusCode: statusCode, headers: headers)
    }

    public func empty() -> RuntimeOutput {
        RuntimeOutput(statusCode: 204)
    }

    public func redirect(_ url: String, statusCode: Int = 301, headers: [String: String] = [:]) -> RuntimeOutput {
        RuntimeOutput(statusCode: statusCode, headers: with(headers, "location", url))
    }

    private func with(_ headers: [String: String], _ name: String, _ value: String) -> [String: String] {
        var headers = headers.filter { $0.key.lowercased() != name }
        headers[name] = value
        return headers
    }
}

/// A response ready to send.
struct Rendered {
    var status: Int
    var headers = [("content-type", plain)]
    var body = Data()
}

// The framing of the message is the server's.
private let framing: Set = ["content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer"]

/// Checks what a function returned, and throws for what cannot be sent.
func render(_ output: RuntimeOutput) throws -> Rendered {
    let status = output.statusCode == 0 ? 200 : output.statusCode
    guard (200...999).contains(status) else { throw Failure("Invalid status code: \(status)") }
    var headers: [(String, String)] = []
    var contentType = plain
    for (name, value) in output.headers {
        let name = name.lowercased()
        if name.hasPrefix("x-open-runtimes-") || framing.contains(name) { continue }
        guard isToken(name.utf8) else { throw Failure("Invalid header name: \"\(name)\".") }
        let values = name == "set-cookie" ? value.split(separator: "\n").map(String.init) : [value]
        guard values.allSatisfy({ $0.utf8.allSatisfy { ![0, 10, 13].contains($0) } }) else {
            throw Failure("Invalid value of header \(name).")
        }
        if name == "content-type" {
            contentType = withCharset(value)
        } else {
            headers += values.map { (name, $0) }
        }
    }
    return Rendered(status: status, headers: headers + [("content-type", contentType)], body: output.body)
}

private func withCharset(_ value: String) -> String {
    let lower = value.lowercased()
    return lower.hasPrefix("multipart/") || lower.contains("charset=") ? value : lower + "; charset=utf-8"
}
