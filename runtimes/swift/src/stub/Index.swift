/// A function that is built with the image, so that the next ones find the modules compiled that the compiler keeps.
import Foundation

func main(context: RuntimeContext) async throws -> RuntimeOutput {
    context.res.empty()
}
