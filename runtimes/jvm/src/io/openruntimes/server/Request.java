package io.openruntimes.server;

import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;

/** The HTTP request as the function sees it: path and query raw, header names lower-cased. */
public final class Request {
    private static final String CONTROL = "x-open-runtimes-";

    public final String method;
    public final String scheme;
    public final String host;
    public final int port;
    public final String path;
    public final String queryString;
    public final String url;
    public final Map<String, String> query;
    public final Map<String, String> headers;
    public final byte[] body;

    Request(Message message, byte[] body, Settings settings) {
        String proto = message.header("x-forwarded-proto");
        method = message.method.toUpperCase(Locale.ROOT);
        scheme = proto.isEmpty() ? "http" : proto;
        int defaultPort = scheme.equals("https") ? 443 : 80;
        String authority = message.header("host");
        int colon = authority.indexOf(':', authority.startsWith("[") ? Math.max(authority.indexOf(']'), 0) : 0);
        host = colon < 0 ? authority : authority.substring(0, colon);
        port = colon < 0 ? defaultPort : parsePort(authority.substring(colon + 1), defaultPort);
        String target = originForm(message.target);
        int mark = target.indexOf('?');
        path = mark < 0 ? target : target.substring(0, mark);
        queryString = mark < 0 ? "" : target.substring(mark + 1);
        query = parseQuery(queryString);
        url = scheme + "://" + host + (port == defaultPort ? "" : ":" + port) + path
                + (queryString.isEmpty() ? "" : "?" + queryString);
        headers = functionHeaders(message, settings);
        this.body = body;
    }

    public String text() {
        return new String(body, StandardCharsets.UTF_8);
    }

    public Object json() {
        return Json.parse(text());
    }

    /** The body as its type says: parsed where that is JSON, else text. */
    public Object value() {
        boolean isJson = Settings.lower(headers.getOrDefault("content-type", "text/plain")).startsWith("application/json");
        if (!isJson) {
            return text();
        }
        return body.length == 0 ? new LinkedHashMap<>() : json();
    }

    /** {@code /path?query} also where a proxy sent the absolute form. */
    private static String originForm(String target) {
        int scheme = target.indexOf("://");
        if (target.startsWith("/") || scheme < 0) {
            return target;
        }
        int slash = target.indexOf('/', scheme + 3);
        return slash < 0 ? "/" : target.substring(slash);
    }

    private static int parsePort(String text, int defaultPort) {
        try {
            int port = Integer.parseUnsignedInt(text);
            return port >= 0 && port <= 65_535 ? port : defaultPort;
        } catch (NumberFormatException error) {
            return defaultPort;
        }
    }

    /** Raw text, split at {@code &} and at the first {@code =}; the last of equal keys wins. */
    private static Map<String, String> parseQuery(String text) {
        Map<String, String> query = new LinkedHashMap<>();
        for (String item : text.split("&")) {
            int equals = item.indexOf('=');
            String key = equals < 0 ? item : item.substring(0, equals);
            if (!key.isEmpty()) {
                query.put(key, equals < 0 ? "" : item.substring(equals + 1));
            }
        }
        return query;
    }

    /** Without the runtime's own headers and the caller's own credential, below the enforced ones. */
    private static Map<String, String> functionHeaders(Message message, Settings settings) {
        Map<String, String> headers = new LinkedHashMap<>();
        for (Map.Entry<String, String> header : message.headers.entrySet()) {
            if (!header.getKey().startsWith(CONTROL)) {
                headers.put(header.getKey(), header.getValue());
            }
        }
        String own = settings.ownCredential();
        if (own != null && own.equals(headers.get("authorization"))) {
            headers.remove("authorization");
            for (String other : message.authorizations) {
                if (!other.equals(own)) {
                    headers.putIfAbsent("authorization", other);
                }
            }
        }
        headers.putAll(settings.enforcedHeaders());
        return headers;
    }
}
