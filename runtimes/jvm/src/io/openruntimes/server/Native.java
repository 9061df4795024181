package io.openruntimes.server;

import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

/** What a function prints goes to the log of the execution it was printed in; outside one it goes where it always did. */
public final class Native extends OutputStream {
    /** Threads that an execution starts inherit its log. */
    private static final InheritableThreadLocal<ExecutionLog> CURRENT = new InheritableThreadLocal<>();

    private final FileOutputStream stream;

    private Native(FileDescriptor descriptor) {
        stream = new FileOutputStream(descriptor);
    }

    /** Redirects both streams, for good. */
    static void captureOutput() {
        System.setOut(new PrintStream(new Native(FileDescriptor.out), true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(new Native(FileDescriptor.err), true, StandardCharsets.UTF_8));
    }

    /** The log of the execution that the running code belongs to, for a thread that none has started. */
    public static ThreadLocal<ExecutionLog> current() {
        return CURRENT;
    }

    @Override
    public void write(int oneByte) throws IOException {
        write(new byte[] {(byte) oneByte}, 0, 1);
    }

    @Override
    public void write(byte[] bytes, int offset, int length) throws IOException {
        ExecutionLog log = CURRENT.get();
        if (log == null || !log.takeNative(bytes, offset, length)) {
            stream.write(bytes, offset, length);
        }
    }
}
