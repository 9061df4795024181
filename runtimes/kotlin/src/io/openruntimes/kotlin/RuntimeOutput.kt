package io.openruntimes.kotlin

/** What a function returns. */
class RuntimeOutput(val body: ByteArray, val statusCode: Int, val headers: Map<String, String>)
