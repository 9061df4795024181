package io.openruntimes.server;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The head of one HTTP/1.1 message: read from a request, and written for an answer. Strict where two readers could disagree. */
final class Message {
    static final String PLAIN = "text/plain; charset=utf-8";

    private static final Map<Integer, String> REASONS = new HashMap<>();

    static {
        REASONS.put(200, "OK");
        REASONS.put(204, "No Content");
        REASONS.put(301, "Moved Permanently");
        REASONS.put(302, "Found");
        REASONS.put(304, "Not Modified");
        REASONS.put(400, "Bad Request");
        REASONS.put(401, "Unauthorized");
        REASONS.put(404, "Not Found");
        REASONS.put(413, "Content Too Large");
        REASONS.put(500, "Internal Server Error");
        REASONS.put(503, "Service Unavailable");
    }

    /** A message that cannot be understood: {@code status} is the answer, after which the connection ends. */
    static final class Malformed extends Exception {
        final int status;

        Malformed(int status) {
            super(null, null, false, false);
            this.status = status;
        }
    }

    final String method;
    final String target;
    /** Lower-cased names; repeats are joined, but of {@code authorization}, which are all kept beside it. */
    final Map<String, String> headers = new LinkedHashMap<>();
    final List<String> authorizations = new ArrayList<>();

    /** Bytes of the body, where it is not chunked. */
    long length;
    boolean isChunked;
    boolean keepsAlive;
    /** Whether all of the body has been taken from the connection. */
    boolean isRead;

    private Message(String method, String target) {
        this.method = method;
        this.target = target;
    }

    String header(String name) {
        return headers.getOrDefault(name, "");
    }

    /** Whether the caller sends its body only when it is asked to. */
    boolean waitsForInvitation() {
        return header("expect").equalsIgnoreCase("100-continue");
    }

    /** Reads a head, without the empty line that ends it. */
    static Message parse(byte[] bytes, int start, int end) throws Malformed {
        String[] lines = new String(bytes, start, end - start, StandardCharsets.UTF_8).split("\r\n", -1);
        String[] words = lines[0].split(" ", -1);
        boolean isUnderstood = words.length == 3
                && isToken(words[0])
                && isTarget(words[1])
                && (words[2].equals("HTTP/1.1") || words[2].equals("HTTP/1.0"));
        if (!isUnderstood) {
            throw new Malformed(400);
        }
        Message message = new Message(words[0], words[1]);
        for (int i = 1; i < lines.length; i++) {
            message.add(lines[i]);
        }
        message.frame(words[2]);
        return message;
    }

    private void add(String line) throws Malformed {
        int colon = line.indexOf(':');
        if (colon < 0 || !isToken(line.substring(0, colon)) || !isValue(line)) {
            throw new Malformed(400);
        }
        String name = Settings.lower(line.substring(0, colon));
        String value = strip(line.substring(colon + 1));
        String earlier = headers.get(name);
        if (name.equals("authorization")) {
            authorizations.add(value);
        }
        if (earlier == null) {
            headers.put(name, value);
            return;
        }
        switch (name) {
            case "host", "content-type", "authorization" -> { }
            case "content-length" -> {
                if (!value.equals(earlier)) {
                    throw new Malformed(400);
                }
            }
            default -> headers.put(name, earlier + (name.equals("cookie") ? "; " : ", ") + value);
        }
    }

    /** Where the body ends, and whether another request may follow. */
    private void frame(String version) throws Malformed {
        length = parseLength(headers.getOrDefault("content-length", "0"));
        String coding = headers.get("transfer-encoding");
        isChunked = coding != null;
        boolean isContradictory = isChunked
                && (!coding.equalsIgnoreCase("chunked") || headers.containsKey("content-length") || version.endsWith("0"));
        if (isContradictory) {
            throw new Malformed(400);
        }
        String options = Settings.lower(header("connection"));
        keepsAlive = !options.contains("close") && (version.endsWith("1") || options.contains("keep-alive"));
        isRead = length == 0 && !isChunked;
    }

    private static long parseLength(String text) throws Malformed {
        if (text.length() > 18 || !isNumber(text, 10)) {
            throw new Malformed(400);
        }
        return Long.parseLong(text);
    }

    /** Whether a text is digits of that base, without a sign. */
    static boolean isNumber(String text, int base) {
        for (int i = 0; i < text.length(); i++) {
            if (text.charAt(i) > 'f' || Character.digit(text.charAt(i), base) < 0) {
                return false;
            }
        }
        return !text.isEmpty();
    }

    /** Optional white space around a value is not part of it. */
    private static String strip(String value) {
        int start = 0;
        int end = value.length();
        while (start < end && isBlank(value.charAt(start))) {
            start++;
        }
        while (end > start && isBlank(value.charAt(end - 1))) {
            end--;
        }
        return value.substring(start, end);
    }

    private static boolean isBlank(char c) {
        return c == ' ' || c == '\t';
    }

    private static boolean isTarget(String text) {
        for (int i = 0; i < text.length(); i++) {
            if (text.charAt(i) <= ' ' || text.charAt(i) == 0x7f) {
                return false;
            }
        }
        return !text.isEmpty();
    }

    /** Whether a text may be a method or a header's name (RFC 9110, 5.6.2). */
    static boolean isToken(String text) {
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            boolean isAllowed = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
                    || "!#$%&'*+-.^_`|~".indexOf(c) >= 0;
            if (!isAllowed) {
                return false;
            }
        }
        return !text.isEmpty();
    }

    static boolean isValue(String text) {
        return text.indexOf('\r') < 0 && text.indexOf('\n') < 0 && text.indexOf('\0') < 0;
    }

    /** The head of an answer. */
    static byte[] encode(int status, List<Map.Entry<String, String>> headers) {
        StringBuilder head = new StringBuilder(256);
        head.append("HTTP/1.1 ").append(status).append(' ').append(REASONS.getOrDefault(status, "")).append("\r\n");
        for (Map.Entry<String, String> header : headers) {
            head.append(header.getKey()).append(": ").append(header.getValue()).append("\r\n");
        }
        return head.append("\r\n").toString().getBytes(StandardCharsets.UTF_8);
    }
}
