package io.openruntimes.java;

import io.openruntimes.server.ExecutionLog;
import io.openruntimes.server.Language;
import io.openruntimes.server.Request;
import io.openruntimes.server.Response;
import java.lang.reflect.Method;

/** The HTTP server of the java runtime: the sandbox's main process. */
public final class Server implements Language {
    public static void main(String[] args) {
        io.openruntimes.server.Server.run(new Server());
    }

    @Override
    public String packageName() {
        return "io.openruntimes.java";
    }

    @Override
    public String defaultEntrypoint() {
        return "Index.java";
    }

    @Override
    public Method main(Class<?> type) {
        try {
            return type.getMethod("main", RuntimeContext.class);
        } catch (NoSuchMethodException error) {
            return null;
        }
    }

    @Override
    public Response call(Method main, Object instance, Request request, ExecutionLog log)
            throws ReflectiveOperationException {
        Object returned = main.invoke(instance, new RuntimeContext(new RuntimeRequest(request), log));
        if (returned == null) {
            return null;
        }
        if (returned instanceof RuntimeOutput output) {
            return Response.of(output.getBody(), output.getStatusCode(), output.getHeaders());
        }
        throw new ClassCastException("The function must return a RuntimeOutput, not " + returned.getClass().getName());
    }
}
