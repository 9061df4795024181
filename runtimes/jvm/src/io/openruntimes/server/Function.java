package io.openruntimes.server;

import java.io.File;
import java.lang.reflect.Constructor;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.net.MalformedURLException;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** The function, or why there is none: a failure to load it is kept and told to every caller, and the server stays up. */
final class Function {
    private static final String NO_MAIN = "Function signature invalid. Did you forget to export a 'main' function?";

    private final Language language;
    private final Method main;
    private final Constructor<?> constructor;
    /** Why there is no function; null where there is one. */
    final String failure;

    private Function(Language language, Method main, Constructor<?> constructor, String failure) {
        this.language = language;
        this.main = main;
        this.constructor = constructor;
        this.failure = failure;
    }

    static Function load(Language language, Settings settings) {
        String name = className(language, settings.entrypoint());
        try {
            ClassLoader loader = loader(settings.codeDir());
            Thread.currentThread().setContextClassLoader(loader);
            Class<?> type = Class.forName(name, true, loader);
            Method main = language.main(type);
            if (main == null) {
                return new Function(null, null, null, NO_MAIN);
            }
            main.setAccessible(true);
            Constructor<?> constructor = null;
            if (!Modifier.isStatic(main.getModifiers())) {
                constructor = type.getDeclaredConstructor();
                constructor.setAccessible(true);
            }
            return new Function(language, main, constructor, null);
        } catch (ClassNotFoundException | NoClassDefFoundError error) {
            return failed("Class not found: ", error);
        } catch (Throwable error) {
            // What a class does when it is loaded is the function's; the server answers for it.
            return failed("Failed to load module: ", error);
        }
    }

    private static Function failed(String what, Throwable error) {
        return new Function(null, null, null, what + error.getMessage() + "\n" + ExecutionLog.describe(error));
    }

    /** Makes an instance of its own for each execution. Throws what the function throws. */
    Response call(Request request, ExecutionLog log) throws Throwable {
        try {
            Object instance = constructor == null ? null : constructor.newInstance();
            return language.call(main, instance, request, log);
        } catch (InvocationTargetException error) {
            throw error.getCause();
        }
    }

    /** {@code src/Index.java} is the class {@code src.Index} in the language's package. */
    private static String className(Language language, String entrypoint) {
        String extension = language.defaultEntrypoint().substring(language.defaultEntrypoint().lastIndexOf('.'));
        String path = entrypoint.startsWith("./") ? entrypoint.substring(2) : entrypoint;
        if (path.endsWith(extension)) {
            path = path.substring(0, path.length() - extension.length());
        }
        return language.packageName() + "." + path.replace('/', '.');
    }

    /** The function's jars, with what it depends on, and its folder for files that its classes ask for. */
    private static ClassLoader loader(Path folder) throws MalformedURLException {
        List<URL> urls = new ArrayList<>();
        addJars(folder.toFile(), urls);
        urls.add(folder.toFile().toURI().toURL());
        return new URLClassLoader(urls.toArray(new URL[0]), Function.class.getClassLoader());
    }

    private static void addJars(File folder, List<URL> urls) throws MalformedURLException {
        File[] entries = folder.listFiles();
        if (entries == null) {
            return;
        }
        Arrays.sort(entries);
        for (File entry : entries) {
            if (entry.getName().endsWith(".jar")) {
                urls.add(entry.toURI().toURL());
            } else if (entry.isDirectory()) {
                addJars(entry, urls);
            }
        }
    }
}
