package io.openruntimes.server;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonSyntaxException;
import com.google.gson.ToNumberPolicy;
import com.google.gson.TypeAdapter;
import com.google.gson.stream.JsonReader;
import com.google.gson.stream.JsonToken;
import java.io.IOException;
import java.io.StringReader;

/** JSON as functions see it: whole numbers are longs, objects are maps that keep their order. */
public final class Json {
    private static final Gson GSON = new GsonBuilder()
            .setObjectToNumberStrategy(ToNumberPolicy.LONG_OR_DOUBLE)
            .serializeNulls()
            .disableHtmlEscaping()
            .create();
    private static final TypeAdapter<Object> ADAPTER = GSON.getAdapter(Object.class);

    private Json() {}

    /** The value of a JSON text; fails for any other text. */
    public static Object parse(String text) {
        try {
            JsonReader reader = new JsonReader(new StringReader(text));
            Object value = ADAPTER.read(reader);
            if (reader.peek() != JsonToken.END_DOCUMENT) {
                throw new JsonSyntaxException("JSON text goes on after its end");
            }
            return value;
        } catch (IOException | IllegalStateException | NumberFormatException error) {
            throw new JsonSyntaxException("Invalid JSON: " + error.getMessage(), error);
        }
    }

    /** A value as compact JSON. */
    public static String encode(Object value) {
        return GSON.toJson(value);
    }

    /** A text as it is, and any other value as JSON. */
    static String text(Object value) {
        return value instanceof String text ? text : encode(value);
    }
}
