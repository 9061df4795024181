package io.openruntimes.server;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.StringJoiner;

/** What a function returned, ready to send: names and values of headers are such as may be sent. */
public record Response(int status, List<Map.Entry<String, String>> headers, byte[] body) {
    private static final String CONTROL = "x-open-runtimes-";
    /** The framing of the message is the server's. */
    private static final Set<String> FRAMING =
            Set.of("content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer");
    private static final byte[] NOTHING = {};

    /** Fails for what cannot be sent. */
    public static Response of(byte[] body, int status, Map<String, String> given) {
        if (status < 200 || status > 999) {
            throw new IllegalArgumentException("Invalid status code: " + status);
        }
        List<Map.Entry<String, String>> headers = new ArrayList<>();
        String contentType = Message.PLAIN;
        for (Map.Entry<String, String> header : given.entrySet()) {
            String name = Settings.lower(header.getKey());
            String value = header.getValue();
            if (name.startsWith(CONTROL) || FRAMING.contains(name) || value == null) {
                continue;
            }
            if (!Message.isToken(name)) {
                throw new IllegalArgumentException("Invalid header name: " + name);
            }
            if (name.equals("content-type")) {
                contentType = check(name, withCharset(value));
                continue;
            }
            // A map has one value for a name: several cookies are lines of it.
            for (String one : name.equals("set-cookie") ? value.split("\n") : new String[] {value}) {
                headers.add(Map.entry(name, check(name, one)));
            }
        }
        headers.add(Map.entry("content-type", contentType));
        return new Response(status, headers, body == null ? NOTHING : body);
    }

    static Response failed(int status) {
        return new Response(status, List.of(Map.entry("content-type", Message.PLAIN)), NOTHING);
    }

    /**
     * Headers as functions give them, with texts for values: those of a list become lines for cookies, and are joined for
     * others.
     */
    public static Map<String, String> flatten(Map<String, ?> given) {
        Map<String, String> headers = new LinkedHashMap<>();
        for (Map.Entry<String, ?> header : given.entrySet()) {
            String name = header.getKey();
            if (header.getValue() instanceof Collection<?> values) {
                StringJoiner joined = new StringJoiner(name.equalsIgnoreCase("set-cookie") ? "\n" : ", ");
                for (Object value : values) {
                    joined.add(String.valueOf(value));
                }
                headers.put(name, joined.toString());
            } else if (header.getValue() != null) {
                headers.put(name, header.getValue().toString());
            }
        }
        return headers;
    }

    /** The headers with one of them set, whatever its name's case was. */
    public static Map<String, String> with(Map<String, ?> given, String name, String value) {
        Map<String, String> headers = flatten(given);
        for (String other : given.keySet()) {
            if (other.equalsIgnoreCase(name)) {
                headers.remove(other);
            }
        }
        headers.put(name, value);
        return headers;
    }

    private static String check(String name, String value) {
        if (!Message.isValue(value)) {
            throw new IllegalArgumentException("Invalid value of header " + name + ".");
        }
        return value;
    }

    private static String withCharset(String value) {
        String lower = Settings.lower(value);
        boolean isComplete = lower.startsWith("multipart/") || lower.contains("charset=");
        return isComplete ? value : lower + "; charset=utf-8";
    }
}
