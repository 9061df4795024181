package io.openruntimes.server;

import io.openruntimes.server.Message.Malformed;
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;
import java.util.Map;

/** HTTP/1.1 on one accepted socket: heads and bodies in, answers out. */
final class Connection {
    private static final int HEAD_LIMIT = 128 << 10;
    private static final int BODY_LIMIT = 20 << 20;
    /** What a caller may go on sending after an early answer until its connection is cut. */
    private static final int DISCARD_LIMIT = 64 << 20;
    private static final int BUFFER_SIZE = 16 << 10;
    /** How long a caller may stall in the middle of a message. */
    private static final int STALL_MS = 60_000;
    private static final byte[] CONTINUE = "HTTP/1.1 100 Continue\r\n\r\n".getBytes(StandardCharsets.US_ASCII);
    private static final List<Map.Entry<String, String>> REFUSED =
            List.of(Map.entry("content-length", "0"), Map.entry("connection", "close"));
    private static final byte[] NOTHING = {};

    /** The body is beyond the limit; nothing of it is kept. */
    static final class BodyTooLarge extends Exception {
        BodyTooLarge() {
            super(null, null, false, false);
        }
    }

    private final Socket socket;
    private final InputStream input;
    private final OutputStream output;
    /** What has been received and not yet taken: from {@code start} to {@code end}. */
    private byte[] buffer = new byte[BUFFER_SIZE];
    private int start;
    private int end;

    Connection(Socket socket) throws IOException {
        this.socket = socket;
        // An answer leaves at once.
        socket.setTcpNoDelay(true);
        input = socket.getInputStream();
        output = socket.getOutputStream();
    }

    /** Lets {@code executions} answer request after request, until one side has enough. */
    void serve(Executions executions) throws IOException {
        try {
            for (Message message = readHead(); message != null; message = readHead()) {
                executions.handle(message, this);
                // The rest of the body is read first, so that the caller comes to read the answer.
                if (!discardBody(message) || !message.keepsAlive) {
                    return;
                }
            }
        } catch (Malformed error) {
            transmit(Message.encode(error.status, REFUSED));
        }
    }

    /** The whole body; BodyTooLarge as soon as that is known. */
    byte[] readBody(Message message) throws IOException, Malformed, BodyTooLarge {
        if (message.isRead) {
            return NOTHING;
        }
        if (message.length > BODY_LIMIT) {
            throw new BodyTooLarge();
        }
        if (message.waitsForInvitation()) {
            transmit(CONTINUE);
        }
        byte[] body = message.isChunked ? readChunked(message, BODY_LIMIT) : readExactly((int) message.length);
        message.isRead = true;
        return body;
    }

    void transmit(byte[] bytes) throws IOException {
        output.write(bytes);
    }

    void transmit(byte[] head, byte[] body) throws IOException {
        if (body.length <= BUFFER_SIZE) {
            byte[] both = Arrays.copyOf(head, head.length + body.length);
            System.arraycopy(body, 0, both, head.length, body.length);
            transmit(both);
        } else {
            transmit(head);
            transmit(body);
        }
    }

    /** The next request's head; null where the caller has ended the connection. */
    private Message readHead() throws IOException, Malformed {
        socket.setSoTimeout(0);
        int searched = 0;
        while (true) {
            // RFC 9112, 2.2: an empty line before a request line is skipped.
            while (end - start >= 2 && buffer[start] == '\r' && buffer[start + 1] == '\n') {
                start += 2;
                searched = 0;
            }
            int headEnd = find("\r\n\r\n", start + searched);
            if (headEnd >= 0) {
                int head = start;
                start = headEnd + 4;
                socket.setSoTimeout(STALL_MS);
                return Message.parse(buffer, head, headEnd);
            }
            if (end - start > HEAD_LIMIT) {
                throw new Malformed(431);
            }
            // The mark may have begun.
            searched = Math.max(end - start - 3, 0);
            socket.setSoTimeout(end > start ? STALL_MS : 0);
            if (!receive()) {
                if (end > start) {
                    throw new EOFException();
                }
                return null;
            }
        }
    }

    /** Some more bytes; false at the end of what the caller sends. */
    private boolean receive() throws IOException {
        if (start > 0) {
            System.arraycopy(buffer, start, buffer, 0, end - start);
            end -= start;
            start = 0;
        }
        if (end == buffer.length) {
            buffer = Arrays.copyOf(buffer, buffer.length * 2);
        }
        int count = input.read(buffer, end, buffer.length - end);
        end += Math.max(count, 0);
        return count >= 0;
    }

    private int find(String mark, int from) {
        search:
        for (int at = from; at <= end - mark.length(); at++) {
            for (int i = 0; i < mark.length(); i++) {
                if (buffer[at + i] != mark.charAt(i)) {
                    continue search;
                }
            }
            return at;
        }
        return -1;
    }

    private byte[] readExactly(int length) throws IOException {
        byte[] bytes = new byte[length];
        int there = Math.min(length, end - start);
        System.arraycopy(buffer, start, bytes, 0, there);
        start += there;
        if (input.readNBytes(bytes, there, length - there) < length - there) {
            throw new EOFException();
        }
        return bytes;
    }

    private void skip(long length) throws IOException {
        while (length > 0) {
            if (start == end && !receive()) {
                throw new EOFException();
            }
            int taken = (int) Math.min(length, end - start);
            start += taken;
            length -= taken;
        }
    }

    private String readLine() throws IOException, Malformed {
        while (true) {
            int lineEnd = find("\r\n", start);
            if (lineEnd >= 0) {
                String line = new String(buffer, start, lineEnd - start, StandardCharsets.ISO_8859_1);
                start = lineEnd + 2;
                return line;
            }
            if (end - start > HEAD_LIMIT) {
                throw new Malformed(431);
            }
            if (!receive()) {
                throw new EOFException();
            }
        }
    }

    /** Reads on to the next request; false where that is too far. A caller that waits to be invited sends nothing. */
    private boolean discardBody(Message message) throws IOException, Malformed {
        if (message.isRead) {
            return true;
        }
        if (message.waitsForInvitation() || message.length > DISCARD_LIMIT) {
            return false;
        }
        try {
            if (message.isChunked) {
                readChunked(message, 0);
            } else {
                skip(message.length);
            }
            return true;
        } catch (BodyTooLarge error) {
            return message.isRead;
        }
    }

    /** The body; what lies beyond {@code limit} is read and thrown away, up to a limit of its own. */
    private byte[] readChunked(Message message, int limit) throws IOException, Malformed, BodyTooLarge {
        ByteArrayOutputStream body = new ByteArrayOutputStream();
        long total = 0;
        for (long size = readChunkSize(); size > 0; size = readChunkSize()) {
            total += size;
            if (total <= limit) {
                body.writeBytes(readExactly((int) size));
            } else if (total <= DISCARD_LIMIT) {
                body = new ByteArrayOutputStream(0);
                skip(size);
            } else {
                message.keepsAlive = false;
                throw new BodyTooLarge();
            }
            if (!readLine().isEmpty()) {
                throw new Malformed(400);
            }
        }
        skipTrailers();
        message.isRead = true;
        if (total > limit) {
            throw new BodyTooLarge();
        }
        return body.toByteArray();
    }

    private void skipTrailers() throws IOException, Malformed {
        int length = 0;
        for (String line = readLine(); !line.isEmpty(); line = readLine()) {
            length += line.length();
            if (length > HEAD_LIMIT) {
                throw new Malformed(431);
            }
        }
    }

    private long readChunkSize() throws IOException, Malformed {
        String line = readLine();
        int extension = line.indexOf(';');
        String text = (extension < 0 ? line : line.substring(0, extension)).strip();
        if (text.length() > 8 || !Message.isNumber(text, 16)) {
            throw new Malformed(400);
        }
        return Long.parseLong(text, 16);
    }
}
