package io.openruntimes.java;

import java.util.Map;

/** Says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`. */
public class Index {
    public RuntimeOutput main(RuntimeContext context) {
        RuntimeRequest req = context.getReq();
        String name = req.getQuery().getOrDefault("name", "world");
        context.log("Said hello to " + name + ".");
        return context.getRes().json(Map.of(
                "message", "Hello, " + name + "!",
                "method", req.getMethod(),
                "path", req.getPath(),
                "runtime", "Java " + Runtime.version()));
    }
}
