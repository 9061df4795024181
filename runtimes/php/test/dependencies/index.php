<?php

// Says what a package says that the build fetches.
require_once __DIR__ . '/vendor/autoload.php';

return fn ($context) => $context->res->text(Greetings\text());
