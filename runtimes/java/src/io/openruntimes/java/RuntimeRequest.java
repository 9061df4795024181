package io.openruntimes.java;

import io.openruntimes.server.Request;
import java.util.Map;

/** The request of one execution; bodies are decoded when they are asked for. */
public class RuntimeRequest {
    private final Request request;

    RuntimeRequest(Request request) {
        this.request = request;
    }

    /** The body as its type says: parsed where that is JSON, else text. */
    public Object getBody() {
        return request.value();
    }

    public String getBodyText() {
        return request.text();
    }

    @SuppressWarnings("unchecked")
    public Map<String, Object> getBodyJson() {
        return (Map<String, Object>) request.json();
    }

    public byte[] getBodyBinary() {
        return request.body;
    }

    /** The old name of {@link #getBodyText}. */
    public String getBodyRaw() {
        return request.text();
    }

    public Map<String, String> getHeaders() {
        return request.headers;
    }

    public String getMethod() {
        return request.method;
    }

    public String getScheme() {
        return request.scheme;
    }

    public String getHost() {
        return request.host;
    }

    public int getPort() {
        return request.port;
    }

    public String getPath() {
        return request.path;
    }

    public Map<String, String> getQuery() {
        return request.query;
    }

    public String getQueryString() {
        return request.queryString;
    }

    public String getUrl() {
        return request.url;
    }
}
