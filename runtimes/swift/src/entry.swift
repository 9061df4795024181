// The HTTP server of the swift runtime, with the function beside it: the sandbox's main process.
import OpenRuntimes

private let function: OpenRuntimes.Function = { context in try await main(context: context) }

@main
struct Entry {
    static func main() {
        OpenRuntimes.serve(function)
    }
}
