import Foundation

private let control = "x-open-runtimes-"

/// The HTTP request as the function sees it: path and query raw, header names lower-cased.
public final class RuntimeRequest: @unchecked Sendable {
    public let method: String
    public let scheme: String?
    public let host: String
    public let port: Int?
    public let path: String
    public let queryString: String?
    public let query: [String: String]?
    public let url: String
    public let headers: [String: String]
    /// The body as it came.
    public let bodyBinary: Data
    /// What was wrong with the body that was asked for; the execution fails by it.
    private(set) var bodyError: Error?

    init(_ message: Message, body: Data, settings: Settings) {
        let (path, queryString) = splitOnce(originForm(message.target), at: "?")
        let scheme = message["x-forwarded-proto"].flatMap { $0.isEmpty ? nil : $0 } ?? "http"
        let defaultPort = scheme == "https" ? 443 : 80
        let (host, port) = authority(message["host"] ?? "", defaultPort: defaultPort)
        let isDefault = port == defaultPort
        url = "\(scheme)://\(host)\(isDefault ? "" : ":\(port)")\(path)\(queryString.isEmpty ? "" : "?" + queryString)"
        method = message.method.uppercased()
        (self.scheme, self.host, self.port) = (scheme, host, port)
        (self.path, self.queryString, query) = (path, queryString, parseQuery(queryString))
        headers = functionHeaders(message, settings: settings)
        bodyBinary = body
    }

    /// The body as text; what is no UTF-8 is replaced.
    public var bodyText: String { String(decoding: bodyBinary, as: UTF8.self) }

    /// The old name of `bodyText`.
    public var bodyRaw: String { bodyText }

    /// The body as a JSON object, whatever its content type. Where it is none, this is empty and the execution fails.
    public var bodyJson: [String: Any?] {
        do {
            guard let object = try parseJSON(bodyBinary) as? [String: Any] else { throw Failure("it is another value") }
            return object.mapValues { $0 is NSNull ? nil : $0 }
        } catch {
            bodyError = Failure("The body is no JSON object: \(describe(error))")
            return [:]
        }
    }

    /// Parsed JSON where the content type says so, an empty object where there is none to parse; text otherwise.
    public var body: Any {
        guard headers["content-type"]?.lowercased().hasPrefix("application/json") == true else { return bodyText }
        if bodyBinary.isEmpty { return [String: Any]() }
        do {
            return try parseJSON(bodyBinary)
        } catch {
            bodyError = Failure("The body is no JSON: \(describe(error))")
            return [String: Any]()
        }
    }
}

/// `/path?query` also where a proxy sent the absolute form.
private func originForm(_ target: String) -> String {
    guard !target.hasPrefix("/"), let scheme = target.range(of: "://") else { return target }
    let rest = target[scheme.upperBound...]
    return rest.firstIndex(of: "/").map { String(rest[$0...]) } ?? "/"
}

/// What stands before and after the first `separator`, by bytes.
func splitOnce(_ text: String, at separator: Unicode.Scalar) -> (String, String) {
    let scalars = text.unicodeScalars
    guard let index = scalars.firstIndex(of: separator) else { return (text, "") }
    return (String(scalars[..<index]), String(scalars[scalars.index(after: index)...]))
}

private func authority(_ header: String, defaultPort: Int) -> (String, Int) {
    // The colons of an address in brackets are none of the port's.
    let end = header.hasPrefix("[") ? header.firstIndex(of: "]") ?? header.startIndex : header.startIndex
    let (rest, port) = splitOnce(String(header[end...]), at: ":")
    return (String(header[..<end]) + rest, UInt16(port).map(Int.init) ?? defaultPort)
}

/// Raw text, split at `&` and at the first `=`; the last of equal keys wins.
private func parseQuery(_ text: String) -> [String: String] {
    var query: [String: String] = [:]
    for item in text.unicodeScalars.split(separator: "&") {
        let (key, value) = splitOnce(String(item), at: "=")
        if !key.isEmpty { query[key] = value }
    }
    return query
}

/// Leaves out the runtime's own headers and the caller's own credential; the enforced ones win.
private func functionHeaders(_ message: Message, settings: Settings) -> [String: String] {
    var headers = ["host": ""]
    for (name, value) in message.headers where !name.hasPrefix(control) {
        switch name {
        case "host", "content-type":
            if headers[name, default: ""].isEmpty { headers[name] = value }
        case "authorization":
            if value != settings.ownCredential, headers[name] == nil { headers[name] = value }
        default:
            let separator = name == "cookie" ? "; " : ", "
            headers[name] = headers[name].map { $0 + separator + value } ?? value
        }
    }
    return headers.merging(settings.enforcedHeaders) { _, enforced in enforced }
}
