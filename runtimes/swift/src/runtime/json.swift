import Foundation

/// Optionals of any type, which `Any` hides.
protocol AnyOptional {
    var unwrapped: Any? { get }
}

extension Optional: AnyOptional {
    var unwrapped: Any? { self }
}

func parseJSON(_ data: Data) throws -> Any {
    try JSONSerialization.jsonObject(with: data, options: [.fragmentsAllowed])
}

/// Compact JSON of dictionaries, arrays, texts, numbers, truth values and nil, nested at will.
func encodeJSON(_ value: Any?) throws -> Data {
    let plain = plainJSON(value)
    guard JSONSerialization.isValidJSONObject([plain]) else { throw Failure("Cannot encode \(type(of: value)) as JSON.") }
    // Swift's dictionaries have another order in each process; the same answer is the same bytes.
    return try JSONSerialization.data(
        withJSONObject: plain, options: [.fragmentsAllowed, .sortedKeys, .withoutEscapingSlashes])
}

/// Foundation's words for what Swift says by optionals.
private func plainJSON(_ value: Any?) -> Any {
    guard let value else { return NSNull() }
    switch value {
    case let optional as AnyOptional: return optional.unwrapped.map { plainJSON($0) } ?? NSNull()
    case let dictionary as [String: Any?]: return dictionary.mapValues { plainJSON($0) }
    case let array as [Any?]: return array.map { plainJSON($0) }
    default: return value
    }
}
