<?php

return function ($context) {
    $context->log('Sample Log');
    return $context->res->json([
        'isTest' => true,
        'message' => 'Hello Open Runtimes 👋',
        'url' => $context->req->url,
        'variable' => getenv('TEST_VARIABLE') ?: '',
        'todo' => ['userId' => 13],
    ], 200, ['x-key' => 'aValue']);
};
