<?php

// The server with paths of a test's choice: `php test/serve.php PORT CODE_DIR STATE_DIR`.

declare(strict_types=1);

require __DIR__ . '/../src/runtime/serve.php';

[, $port, $codeDir, $stateDir] = $argv;
$settings = Runtime\Settings::fromEnvironment(getenv());
$settings->port = (int) $port;
$settings->codeDir = realpath($codeDir);
$settings->logsDir = "$stateDir/logs";
$settings->timingsFile = "$stateDir/telemetry/timings.txt";
exit(Runtime\serve($settings));
