package io.openruntimes.server;

import java.io.FileOutputStream;
import java.io.IOException;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import sun.misc.Signal;
import sun.misc.SignalHandler;

/**
 * Owns the listening socket, the signals and the life of the process; what a request means is {@link Executions}' matter.
 */
public final class Server {
    private static final int BACKLOG = 4096;
    /** How long a stopping server waits for executions that are under way. */
    private static final long DRAIN_MS = 5_000;

    private Server() {}

    /** Binds, announces readiness, loads the function, and serves until a signal. */
    public static void run(Language language) {
        Settings settings = Settings.fromEnvironment(System.getenv(), language.defaultEntrypoint());
        try (ServerSocket listener = new ServerSocket(settings.port(), BACKLOG)) {
            System.out.println("HTTP server successfully started!");
            noteStartup(settings);
            Native.captureOutput();
            Executions executions = new Executions(settings, Function.load(language, settings));
            endWith(listener, executions);
            accept(listener, executions);
            drain(executions);
        } catch (IOException error) {
            System.err.println("HTTP server failed: " + error.getMessage());
            System.exit(1);
        }
    }

    /** Returns when a signal has closed the listener. */
    private static void accept(ServerSocket listener, Executions executions) {
        while (!listener.isClosed()) {
            try {
                Thread.startVirtualThread(new Caller(listener.accept(), executions));
            } catch (IOException error) {
                // Out of descriptors: let others finish.
                pause();
            }
        }
    }

    /** Who has connected. */
    private record Caller(Socket socket, Executions executions) implements Runnable {
        @Override
        public void run() {
            try (socket) {
                new Connection(socket).serve(executions);
            } catch (IOException error) {
                // It has gone, or stalls.
            }
        }
    }

    /** A signal lets executions finish; {@code System.exit} of a function ends the process at once, with what they have logged. */
    private static void endWith(ServerSocket listener, Executions executions) {
        Runtime.getRuntime().addShutdownHook(new Thread() {
            @Override
            public void run() {
                executions.flush();
            }
        });
        SignalHandler stop = new SignalHandler() {
            @Override
            public void handle(Signal signal) {
                try {
                    listener.close();
                } catch (IOException error) {
                    // Nothing more is accepted either way.
                }
            }
        };
        Signal.handle(new Signal("TERM"), stop);
        Signal.handle(new Signal("INT"), stop);
    }

    private static void drain(Executions executions) {
        long end = System.currentTimeMillis() + DRAIN_MS;
        while (!executions.areOver() && System.currentTimeMillis() < end) {
            pause();
        }
        executions.flush();
        Runtime.getRuntime().halt(0);
    }

    private static void pause() {
        try {
            Thread.sleep(10);
        } catch (InterruptedException error) {
            // It was long enough.
        }
    }

    /** Writes the {@code startup} metric, where the start lifecycle told when it began. Timings are a help, not a need. */
    private static void noteStartup(Settings settings) {
        if (Double.isNaN(settings.startupBegan())) {
            return;
        }
        long milliseconds = Math.max(System.currentTimeMillis() - (long) (settings.startupBegan() * 1000), 0);
        String fraction = Long.toString(1000 + milliseconds % 1000).substring(1);
        try (FileOutputStream file = new FileOutputStream(settings.timingsFile().toString(), true)) {
            file.write(("startup=" + milliseconds / 1000 + "." + fraction + "\n").getBytes(StandardCharsets.UTF_8));
        } catch (IOException error) {
            // Told by nothing but its absence.
        }
    }
}
