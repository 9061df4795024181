package io.openruntimes.java;

import io.openruntimes.server.Json;
import io.openruntimes.server.Response;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** Each method makes an output and sends nothing: the one that is returned counts. A header's value may be a list. */
public class RuntimeResponse {
    private static final byte[] NOTHING = {};

    RuntimeResponse() {}

    public RuntimeOutput text(String body) {
        return text(body, 200);
    }

    public RuntimeOutput text(String body, int statusCode) {
        return text(body, statusCode, Map.of());
    }

    public RuntimeOutput text(String body, int statusCode, Map<String, ?> headers) {
        return binary(body.getBytes(StandardCharsets.UTF_8), statusCode, headers);
    }

    public RuntimeOutput json(Object json) {
        return json(json, 200);
    }

    public RuntimeOutput json(Object json, int statusCode) {
        return json(json, statusCode, Map.of());
    }

    public RuntimeOutput json(Object json, int statusCode, Map<String, ?> headers) {
        return text(Json.encode(json), statusCode, Response.with(headers, "content-type", "application/json"));
    }

    public RuntimeOutput binary(byte[] bytes) {
        return binary(bytes, 200);
    }

    public RuntimeOutput binary(byte[] bytes, int statusCode) {
        return binary(bytes, statusCode, Map.of());
    }

    public RuntimeOutput binary(byte[] bytes, int statusCode, Map<String, ?> headers) {
        return new RuntimeOutput(bytes, statusCode, Response.flatten(headers));
    }

    public RuntimeOutput empty() {
        return binary(NOTHING, 204);
    }

    public RuntimeOutput redirect(String url) {
        return redirect(url, 301);
    }

    public RuntimeOutput redirect(String url, int statusCode) {
        return redirect(url, statusCode, Map.of());
    }

    public RuntimeOutput redirect(String url, int statusCode, Map<String, ?> headers) {
        return binary(NOTHING, statusCode, Response.with(headers, "location", url));
    }

    /** The old form of {@link #text}. */
    public RuntimeOutput send(String body) {
        return text(body);
    }

    /** The old form of {@link #text}. */
    public RuntimeOutput send(String body, int statusCode) {
        return text(body, statusCode);
    }

    /** The old form of {@link #text}. */
    public RuntimeOutput send(String body, int statusCode, Map<String, ?> headers) {
        return text(body, statusCode, headers);
    }
}
