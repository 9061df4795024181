package io.openruntimes.server;

import java.lang.reflect.Method;

/** What a language of the virtual machine adds to the server: the types that its functions see. */
public interface Language {
    /** The package that functions are in. */
    String packageName();

    /** The file that is taken when none is named, whose extension is the language's. */
    String defaultEntrypoint();

    /** A class's function; null where it has none. */
    Method main(Class<?> type);

    /** Calls a function of {@code instance}; null where it returned nothing. */
    Response call(Method main, Object instance, Request request, ExecutionLog log) throws ReflectiveOperationException;
}
