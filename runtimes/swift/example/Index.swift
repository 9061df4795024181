// Says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`.

func main(context: RuntimeContext) async throws -> RuntimeOutput {
    let name = context.req.query?["name"] ?? "world"
    context.log("Said hello to \(name).")
    return try context.res.json([
        "message": "Hello, \(name)!",
        "method": context.req.method,
        "path": context.req.path,
        "runtime": "swift",
    ])
}
