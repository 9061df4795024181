<?php

// The HTTP server of the php runtime: the sandbox's main process.

declare(strict_types=1);

require __DIR__ . '/runtime/serve.php';

exit(Runtime\serve(Runtime\Settings::fromEnvironment(getenv())));
