package io.openruntimes.server;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.util.Collection;
import java.util.Map;
import java.util.StringJoiner;
import java.util.concurrent.ThreadLocalRandom;

/** The log of one execution; after {@code close} nothing is written any more. An empty id means that its caller wants none. */
public final class ExecutionLog {
    private static final int RECORD_LIMIT = 8_000;
    private static final String TRUNCATED = "... Log truncated due to size limit (8000 characters)";
    private static final byte[] NATIVE_NOTICE =
            bytes("Native logs detected. Use context.log() or context.error() for better experience.\n");
    private static final byte[] LINE_END = {'\n'};

    final String id;
    private final LogFile logs;
    private final LogFile errors;
    private boolean isOpen;
    private boolean isNative;
    private boolean isMidLine;

    ExecutionLog(Settings settings, String id) {
        String prefix = settings.logsDir() + "/" + id;
        this.id = id;
        logs = new LogFile(prefix + "_logs.log");
        errors = new LogFile(prefix + "_errors.log");
        isOpen = !id.isEmpty();
    }

    public void log(Object... messages) {
        byte[] record = bytes(record(messages));
        synchronized (this) {
            if (isOpen) {
                endLine();
                logs.write(record, 0, record.length);
            }
        }
    }

    public void error(Object... messages) {
        byte[] record = bytes(record(messages));
        synchronized (this) {
            if (isOpen) {
                errors.write(record, 0, record.length);
            }
        }
    }

    /** Takes what the function printed by other means than its context; false where the execution is over. */
    synchronized boolean takeNative(byte[] bytes, int offset, int length) {
        if (isOpen && length > 0) {
            if (!isNative) {
                logs.write(NATIVE_NOTICE, 0, NATIVE_NOTICE.length);
            }
            logs.write(bytes, offset, length);
            isNative = true;
            isMidLine = bytes[offset + length - 1] != '\n';
        }
        return isOpen || id.isEmpty();
    }

    synchronized void flush() {
        if (isOpen) {
            endLine();
            logs.flush();
            errors.flush();
        }
    }

    synchronized void close() {
        flush();
        isOpen = false;
    }

    private void endLine() {
        if (isMidLine) {
            logs.write(LINE_END, 0, 1);
            isMidLine = false;
        }
    }

    /** The id asked for where it is a safe file name, else one of the runtime's own; empty where logging is off. */
    static String chooseId(Message message, boolean isDevelopment) {
        String logging = message.header("x-open-runtimes-logging");
        if (!logging.isEmpty() && !logging.equals("enabled")) {
            return "";
        }
        String wanted = message.header("x-open-runtimes-log-id");
        if (isSafe(wanted)) {
            return wanted;
        }
        return isDevelopment && wanted.isEmpty() ? "dev" : generateId();
    }

    private static boolean isSafe(String id) {
        for (int i = 0; i < id.length(); i++) {
            char c = id.charAt(i);
            if (c >= 128 || !Character.isLetterOrDigit(c) && "._-".indexOf(c) < 0) {
                return false;
            }
        }
        return !id.isEmpty() && id.length() <= 128 && !id.startsWith(".");
    }

    /** Seconds (8 hexadecimal digits), fraction of a second (5), random (7). */
    private static String generateId() {
        long milliseconds = System.currentTimeMillis();
        long fraction = milliseconds % 1000 * 1000 + ThreadLocalRandom.current().nextInt(1000);
        return hex(milliseconds / 1000, 8) + hex(fraction, 5) + hex(ThreadLocalRandom.current().nextInt(1 << 28), 7);
    }

    private static String hex(long value, int digits) {
        String text = Long.toHexString(value);
        return "0".repeat(digits - text.length()) + text;
    }

    private static String record(Object... messages) {
        StringJoiner joined = new StringJoiner(" ");
        for (Object message : messages) {
            joined.add(toText(message));
        }
        String text = joined.toString();
        if (text.length() > RECORD_LIMIT) {
            boolean splitsPair = Character.isHighSurrogate(text.charAt(RECORD_LIMIT - 1));
            text = text.substring(0, splitsPair ? RECORD_LIMIT - 1 : RECORD_LIMIT) + TRUNCATED;
        }
        return text + "\n";
    }

    /** A text as it is, an error with its stack, lists and maps as JSON, and what knows its own text by that. */
    private static String toText(Object value) {
        try {
            if (value instanceof Throwable error) {
                return describe(error);
            }
            boolean isStructure = value instanceof Map || value instanceof Collection
                    || value != null && value.getClass().isArray();
            return isStructure ? Json.encode(value) : String.valueOf(value);
        } catch (Exception | StackOverflowError error) {
            return value.getClass().getName();
        }
    }

    /** The stack, which names the message and the file; and what it was caused by. */
    static String describe(Throwable error) {
        StringWriter text = new StringWriter();
        error.printStackTrace(new PrintWriter(text));
        return text.toString().stripTrailing();
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
