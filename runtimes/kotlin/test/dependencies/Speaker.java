package io.openruntimes.kotlin;

import org.greetings.Greeting;

/** Sources of both languages know each other. */
public class Speaker {
    public String speak(String end) {
        return Greeting.text().endsWith(Index.MARK) ? Greeting.text() : Greeting.text() + end;
    }
}
