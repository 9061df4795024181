<?php

// Finds and loads the function. A failure is kept and told to every caller: the server stays up.

declare(strict_types=1);

namespace Runtime;

const NO_MAIN = "Function signature invalid. Did you forget to export a 'main' function?";

/** @return array{?callable, ?string} the function, or why there is none */
function load(string $codeDir, string $entrypoint): array
{
    $file = "$codeDir/$entrypoint";
    if (!is_file($file)) {
        return [null, "Failed to load entrypoint, file $entrypoint does not exist."];
    }
    // A relative path, as in `require 'vendor/autoload.php'`, means the function's own file.
    set_include_path($codeDir . PATH_SEPARATOR . get_include_path());
    try {
        $main = (static fn () => require $file)();
    } catch (\ParseError $error) {
        return [null, "Syntax error in $entrypoint: {$error->getMessage()}\n$error"];
    } catch (\Throwable $error) {
        return [null, "Failed to load module: {$error->getMessage()}\n$error"];
    }
    return is_callable($main) ? [$main, null] : [null, NO_MAIN];
}
