package io.openruntimes.java;

import io.openruntimes.server.ExecutionLog;

/** What a function is called with. */
public class RuntimeContext {
    private final RuntimeRequest req;
    private final RuntimeResponse res = new RuntimeResponse();
    private final ExecutionLog log;

    RuntimeContext(RuntimeRequest req, ExecutionLog log) {
        this.req = req;
        this.log = log;
    }

    public RuntimeRequest getReq() {
        return req;
    }

    public RuntimeResponse getRes() {
        return res;
    }

    public void log(Object... messages) {
        log.log(messages);
    }

    public void error(Object... messages) {
        log.error(messages);
    }
}
