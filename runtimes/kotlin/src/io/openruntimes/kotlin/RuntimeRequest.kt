package io.openruntimes.kotlin

import io.openruntimes.server.Request

/** The request of one execution; bodies are decoded when they are asked for. */
class RuntimeRequest internal constructor(private val request: Request) {
    /** The body as its type says: parsed where that is JSON, else text. */
    val body: Any get() = request.value()
    val bodyText: String get() = request.text()

    @Suppress("UNCHECKED_CAST")
    val bodyJson: MutableMap<String, Any> get() = request.json() as MutableMap<String, Any>
    val bodyBinary: ByteArray get() = request.body

    /** The old name of [bodyText]. */
    val bodyRaw: String get() = request.text()
    val headers: MutableMap<String, String> get() = request.headers
    val method: String get() = request.method
    val scheme: String get() = request.scheme
    val host: String get() = request.host
    val port: Int get() = request.port
    val path: String get() = request.path
    val query: MutableMap<String, String> get() = request.query
    val queryString: String get() = request.queryString
    val url: String get() = request.url
}
