package io.openruntimes.server;

import java.io.ByteArrayOutputStream;
import java.io.FileOutputStream;
import java.io.IOException;

/**
 * The buffered text of one log file. It is written when there is something to write, at the latest before the response leaves,
 * so that a silent function costs no file; failing to write never fails the execution.
 */
final class LogFile {
    private static final int BUFFER_LIMIT = 64 << 10;
    /** Callers read 5 MiB of a file and say so when there is more: what lies further back would only fill the disk. */
    private static final int FILE_LIMIT = (5 << 20) + (64 << 10);

    private final String path;
    private final ByteArrayOutputStream buffer = new ByteArrayOutputStream();
    private int room = FILE_LIMIT;

    LogFile(String path) {
        this.path = path;
    }

    void write(byte[] bytes, int offset, int length) {
        int taken = Math.min(length, room);
        buffer.write(bytes, offset, taken);
        room -= taken;
        if (buffer.size() > BUFFER_LIMIT) {
            flush();
        }
    }

    void flush() {
        if (buffer.size() == 0) {
            return;
        }
        try (FileOutputStream file = new FileOutputStream(path, true)) {
            buffer.writeTo(file);
        } catch (IOException error) {
            room = 0;
        }
        buffer.reset();
    }
}
