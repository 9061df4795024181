package io.openruntimes.kotlin

import io.openruntimes.server.Json
import io.openruntimes.server.Response

/** Each method makes an output and sends nothing: the one that is returned counts. A header's value may be a list. */
class RuntimeResponse internal constructor() {
    fun text(body: String, statusCode: Int = 200, headers: Map<String, Any> = emptyMap()): RuntimeOutput =
        binary(body.toByteArray(), statusCode, headers)

    fun json(json: Any?, statusCode: Int = 200, headers: Map<String, Any> = emptyMap()): RuntimeOutput =
        text(Json.encode(json), statusCode, Response.with(headers, "content-type", "application/json"))

    fun binary(bytes: ByteArray, statusCode: Int = 200, headers: Map<String, Any> = emptyMap()): RuntimeOutput =
        RuntimeOutput(bytes, statusCode, Response.flatten(headers))

    fun empty(): RuntimeOutput = binary(ByteArray(0), 204)

    fun redirect(url: String, statusCode: Int = 301, headers: Map<String, Any> = emptyMap()): RuntimeOutput =
        binary(ByteArray(0), statusCode, Response.with(headers, "location", url))

    /** The old form of [text]. */
    fun send(body: String, statusCode: Int = 200, headers: Map<String, Any> = emptyMap()): RuntimeOutput =
        text(body, statusCode, headers)
}
