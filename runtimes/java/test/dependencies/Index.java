package io.openruntimes.java;

import org.greetings.Greeting;

/** Says what a library says that the build fetches. */
public class Index {
    public RuntimeOutput main(RuntimeContext context) {
        return context.getRes().text(Greeting.text());
    }
}
