package io.openruntimes.kotlin

import io.openruntimes.server.ExecutionLog
import io.openruntimes.server.Language
import io.openruntimes.server.Native
import io.openruntimes.server.Request
import io.openruntimes.server.Response
import java.lang.reflect.Method
import kotlin.coroutines.Continuation
import kotlin.coroutines.intrinsics.suspendCoroutineUninterceptedOrReturn
import kotlinx.coroutines.asContextElement
import kotlinx.coroutines.runBlocking

/** The HTTP server of the kotlin runtime: the sandbox's main process. */
class Server : Language {
    override fun packageName() = "io.openruntimes.kotlin"

    override fun defaultEntrypoint() = "Index.kt"

    /** `fun main(context)` and `suspend fun main(context)`, which the compiler gives a second parameter. */
    override fun main(type: Class<*>): Method? {
        for (method in type.methods) {
            val parameters = method.parameterTypes
            val isFunction = method.name == "main" && parameters.isNotEmpty() && parameters[0] == RuntimeContext::class.java
            if (isFunction && (parameters.size == 1 || parameters.size == 2 && parameters[1] == Continuation::class.java)) {
                return method
            }
        }
        return null
    }

    override fun call(main: Method, instance: Any?, request: Request, log: ExecutionLog): Response? {
        val context = RuntimeContext(RuntimeRequest(request), log)
        val returned = if (main.parameterCount == 1) main.invoke(instance, context) else suspending(main, instance, context, log)
        return when (returned) {
            null, Unit -> null
            is RuntimeOutput -> Response.of(returned.body, returned.statusCode, returned.headers)
            else -> throw ClassCastException("The function must return a RuntimeOutput, not ${returned.javaClass.name}")
        }
    }

    /** The log goes along to whichever thread the function goes on in; interrupting this one cancels the function. */
    private fun suspending(main: Method, instance: Any?, context: RuntimeContext, log: ExecutionLog): Any? =
        runBlocking(Native.current().asContextElement(log)) {
            suspendCoroutineUninterceptedOrReturn { continuation -> main.invoke(instance, context, continuation) }
        }

    companion object {
        @JvmStatic
        fun main(arguments: Array<String>) = io.openruntimes.server.Server.run(Server())
    }
}
