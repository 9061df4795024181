package io.openruntimes.kotlin

/** Says what a library says that the build fetches. */
class Index {
    fun main(context: RuntimeContext): RuntimeOutput = context.res.text(Speaker().speak(MARK))

    companion object {
        const val MARK = "!"
    }
}
