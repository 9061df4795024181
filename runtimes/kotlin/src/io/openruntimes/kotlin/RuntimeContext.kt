package io.openruntimes.kotlin

import io.openruntimes.server.ExecutionLog

/** What a function is called with. */
class RuntimeContext internal constructor(val req: RuntimeRequest, private val log: ExecutionLog) {
    val res = RuntimeResponse()

    fun log(vararg messages: Any?) = log.log(*messages)

    fun error(vararg messages: Any?) = log.error(*messages)
}
