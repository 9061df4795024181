package io.openruntimes.kotlin

import kotlinx.coroutines.delay

/** A function that is executed when the image is built, so that the server starts from what it has loaded. */
class Stub {
    suspend fun main(context: RuntimeContext): RuntimeOutput {
        context.log("log", 1, true, mapOf("key" to "value"))
        println("native")
        delay(1)
        return when (context.req.headers["x-action"]) {
            "json" -> context.res.json(mapOf("query" to context.req.query, "body" to "${context.req.body}"))
            "text" -> context.res.text(context.req.bodyText, 200, mapOf("content-type" to "text/html"))
            else -> throw Exception("thrown")
        }
    }
}
