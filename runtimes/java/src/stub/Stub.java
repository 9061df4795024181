package io.openruntimes.java;

import java.util.Map;

/** A function that is executed when the image is built, so that the server starts from what it has loaded. */
public class Stub {
    public RuntimeOutput main(RuntimeContext context) throws Exception {
        context.log("log", 1, true, Map.of("key", "value"));
        System.out.println("native");
        return switch (context.getReq().getHeaders().get("x-action")) {
            case "json" -> context.getRes().json(Map.of("query", context.getReq().getQuery(), "body", "" + context.getReq().getBody()));
            case "text" -> context.getRes().text(context.getReq().getBodyText(), 200, Map.of("content-type", "text/html"));
            default -> throw new Exception("thrown");
        };
    }
}
