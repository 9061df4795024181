package io.openruntimes.kotlin

/** Says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`. */
class Index {
    fun main(context: RuntimeContext): RuntimeOutput {
        val name = context.req.query["name"] ?: "world"
        context.log("Said hello to $name.")
        return context.res.json(
            mapOf(
                "message" to "Hello, $name!",
                "method" to context.req.method,
                "path" to context.req.path,
                "runtime" to "Kotlin ${KotlinVersion.CURRENT}",
            ),
        )
    }
}
