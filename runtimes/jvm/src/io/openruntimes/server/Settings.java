package io.openruntimes.server;

import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Base64;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;

/**
 * What the server is told by its environment, read once at start. The paths and the port are the protocol's own.
 *
 * @param startupBegan when the start lifecycle began, in seconds; NaN where it did not tell
 * @param ownCredential the caller's credential with the secret, which is not the function's to see; null without one
 */
record Settings(
        int port,
        Path codeDir,
        Path logsDir,
        Path timingsFile,
        double startupBegan,
        String secret,
        String ownCredential,
        boolean isDevelopment,
        String entrypoint,
        Map<String, String> enforcedHeaders) {

    static Settings fromEnvironment(Map<String, String> env, String defaultEntrypoint) {
        String secret = env.getOrDefault("OPEN_RUNTIMES_SECRET", "");
        String entrypoint = env.getOrDefault("OPEN_RUNTIMES_ENTRYPOINT", "");
        return new Settings(
                3000,
                Path.of("src/function").toAbsolutePath(),
                Path.of("/mnt/logs"),
                Path.of("/mnt/telemetry/timings.txt"),
                parseSeconds(env.get("OPEN_RUNTIMES_STARTUP_BEGAN")),
                secret,
                secret.isEmpty() ? null : credential(secret),
                "development".equals(env.get("OPEN_RUNTIMES_ENV")),
                entrypoint.isEmpty() ? defaultEntrypoint : entrypoint,
                parseEnforcedHeaders(env.getOrDefault("OPEN_RUNTIMES_HEADERS", "")));
    }

    private static String credential(String secret) {
        byte[] pair = ("opr:" + secret).getBytes(StandardCharsets.UTF_8);
        return "Basic " + Base64.getEncoder().encodeToString(pair);
    }

    private static double parseSeconds(String text) {
        try {
            return text == null ? Double.NaN : Double.parseDouble(text);
        } catch (NumberFormatException error) {
            return Double.NaN;
        }
    }

    /** Lower-cased names with text values; anything that is no JSON object means none. */
    private static Map<String, String> parseEnforcedHeaders(String text) {
        Map<String, String> headers = new HashMap<>();
        // What loads no JSON library starts sooner.
        if (text.isBlank() || text.equals("{}")) {
            return headers;
        }
        try {
            if (Json.parse(text) instanceof Map<?, ?> parsed) {
                for (Map.Entry<?, ?> header : parsed.entrySet()) {
                    headers.put(lower(header.getKey().toString()), Json.text(header.getValue()));
                }
            }
        } catch (RuntimeException error) {
            headers.clear();
        }
        return headers;
    }

    static String lower(String name) {
        return name.toLowerCase(Locale.ROOT);
    }
}
