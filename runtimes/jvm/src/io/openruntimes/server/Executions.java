package io.openruntimes.server;

import io.openruntimes.server.Connection.BodyTooLarge;
import io.openruntimes.server.Message.Malformed;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** All executions of this process. Lambda expressions are kept out of what every start runs: linking them takes longer. */
final class Executions {
    private static final long MAX_TIMEOUT_S = 2_147_483;
    private static final String UNAUTHORIZED = "Unauthorized. Provide correct \"x-open-runtimes-secret\" header.";
    private static final String BAD_TIMEOUT = "Header \"x-open-runtimes-timeout\" must be an integer greater than 0.";
    private static final String NO_RETURN =
            "Return statement missing. return context.res.empty() if no response is expected.";
    private static final String TIMED_OUT = "Execution timed out.";

    private final Settings settings;
    private final Function function;
    private final Set<ExecutionLog> active = ConcurrentHashMap.newKeySet();
    /** Functions have threads of the system, which they may block or keep busy without holding up a connection. */
    private final ExecutorService threads = Executors.newCachedThreadPool(new ThreadFactory() {
        @Override
        public Thread newThread(Runnable task) {
            Thread thread = new Thread(task, "execution");
            thread.setDaemon(true);
            return thread;
        }
    });

    Executions(Settings settings, Function function) {
        this.settings = settings;
        this.function = function;
    }

    boolean areOver() {
        return active.isEmpty();
    }

    /** Saves what executions have logged so far: the process ends. */
    void flush() {
        for (ExecutionLog log : active) {
            log.flush();
        }
    }

    /**
     * Takes a request from its head to its answer, in the protocol's order: special paths, authentication, timeout, log, body,
     * function, response.
     */
    void handle(Message message, Connection connection) throws IOException, Malformed {
        int mark = message.target.indexOf('?');
        String path = mark < 0 ? message.target : message.target.substring(0, mark);
        if (path.equals("/__opr/health")) {
            answer(message, connection, 200, bytes("OK"));
        } else if (path.equals("/__opr/timings")) {
            answer(message, connection, 200, timings());
        } else if (!isAuthorized(message)) {
            answer(message, connection, 401, bytes(UNAUTHORIZED));
        } else {
            long seconds = parseTimeout(message.header("x-open-runtimes-timeout"));
            if (seconds < 0) {
                answer(message, connection, 500, bytes(BAD_TIMEOUT));
            } else {
                run(message, connection, seconds);
            }
        }
    }

    private void run(Message message, Connection connection, long seconds) throws IOException, Malformed {
        ExecutionLog log = new ExecutionLog(settings, ExecutionLog.chooseId(message, settings.isDevelopment()));
        active.add(log);
        try {
            Response response = execute(message, connection, log, seconds);
            List<Map.Entry<String, String>> headers = new ArrayList<>(response.headers());
            headers.add(Map.entry("x-open-runtimes-log-id", log.id));
            send(message, connection, new Response(response.status(), headers, response.body()));
        } finally {
            active.remove(log);
        }
    }

    /** Answers in the function's place when its time is over, and closes the log. */
    private Response execute(Message message, Connection connection, ExecutionLog log, long seconds)
            throws IOException, Malformed {
        try {
            byte[] body = connection.readBody(message);
            if (function.failure != null) {
                log.error(function.failure);
                return Response.failed(503);
            }
            Future<Response> call = threads.submit(new Callable<>() {
                @Override
                public Response call() {
                    return Executions.this.call(message, body, log);
                }
            });
            try {
                return seconds == 0 ? call.get() : call.get(seconds, TimeUnit.SECONDS);
            } catch (TimeoutException error) {
                log.error(TIMED_OUT);
                log.close();
                // What the function is told comes after its log: it goes on, unheard, unless it heeds that.
                call.cancel(true);
                return Response.failed(500);
            }
        } catch (BodyTooLarge error) {
            return Response.failed(413);
        } catch (ExecutionException | InterruptedException error) {
            throw new IllegalStateException("calls throw nothing and nobody interrupts a connection", error);
        } finally {
            log.close();
        }
    }

    /** Runs the function; what it throws is its error. */
    private Response call(Message message, byte[] body, ExecutionLog log) {
        Native.current().set(log);
        try {
            Response response = function.call(new Request(message, body, settings), log);
            if (response != null) {
                return response;
            }
            log.error(NO_RETURN);
        } catch (Throwable error) {
            log.error(error);
        } finally {
            Native.current().remove();
        }
        return Response.failed(500);
    }

    private boolean isAuthorized(Message message) {
        byte[] given = bytes(message.header("x-open-runtimes-secret"));
        return settings.secret().isEmpty() || MessageDigest.isEqual(given, bytes(settings.secret()));
    }

    /** Whole seconds; 0 where none are asked for; -1 where the text is no positive integer. */
    private static long parseTimeout(String text) {
        if (text.isEmpty()) {
            return 0;
        }
        if (!Message.isNumber(text, 10)) {
            return -1;
        }
        long seconds = text.length() > 9 ? MAX_TIMEOUT_S : Long.parseLong(text);
        return seconds == 0 ? -1 : Math.min(seconds, MAX_TIMEOUT_S);
    }

    private byte[] timings() {
        try {
            return Files.readAllBytes(settings.timingsFile());
        } catch (IOException error) {
            return bytes("");
        }
    }

    /** An answer of the runtime itself, outside any execution. */
    private static void answer(Message message, Connection connection, int status, byte[] body) throws IOException {
        send(message, connection, new Response(status, Response.failed(status).headers(), body));
    }

    private static void send(Message message, Connection connection, Response response) throws IOException {
        List<Map.Entry<String, String>> headers = new ArrayList<>(response.headers());
        boolean isBodiless = response.status() == 204 || response.status() == 304;
        if (!isBodiless) {
            headers.add(Map.entry("content-length", Integer.toString(response.body().length)));
        }
        if (!message.keepsAlive) {
            headers.add(Map.entry("connection", "close"));
        }
        byte[] head = Message.encode(response.status(), headers);
        if (isBodiless || message.method.equals("HEAD")) {
            connection.transmit(head);
        } else {
            connection.transmit(head, response.body());
        }
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
