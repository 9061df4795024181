import Foundation
import Glibc

/// What the server is told by its environment, read once at start. The paths and the port are the protocol's own.
struct Settings {
    let port: UInt16 = 3000
    let logsDirectory = "/mnt/logs"
    let timingsFile = "/mnt/telemetry/timings.txt"
    /// When the start lifecycle began, in seconds since 1970; nil where it did not tell.
    let startupBegan: Double?
    let secret: String
    /// The caller's credential with that secret, which is not the function's to see.
    let ownCredential: String?
    let isDevelopment: Bool
    let enforcedHeaders: [String: String]
    /// The function's file, which errors that tell no place of their own are said to come from.
    let entrypoint: String

    init(environment: (String) -> String) {
        secret = environment("OPEN_RUNTIMES_SECRET")
        ownCredential = secret.isEmpty ? nil : "Basic " + Data("opr:\(secret)".utf8).base64EncodedString()
        isDevelopment = environment("OPEN_RUNTIMES_ENV") == "development"
        enforcedHeaders = parseEnforcedHeaders(environment("OPEN_RUNTIMES_HEADERS"))
        entrypoint = environment("OPEN_RUNTIMES_ENTRYPOINT")
        startupBegan = Double(environment("OPEN_RUNTIMES_STARTUP_BEGAN"))
    }

    static func fromEnvironment() -> Settings {
        Settings { name in getenv(name).map { String(cString: $0) } ?? "" }
    }
}

/// Lower-cased names with text values; anything that is no JSON object means none.
private func parseEnforcedHeaders(_ text: String) -> [String: String] {
    guard let parsed = try? parseJSON(Data(text.utf8)) as? [String: Any] else { return [:] }
    var headers: [String: String] = [:]
    for (name, value) in parsed {
        headers[name.lowercased()] = value as? String ?? (try? encodeJSON(value)).map { String(decoding: $0, as: UTF8.self) }
    }
    return headers
}
