<?php

// Says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`.

return function ($context) {
    $name = $context->req->query['name'] ?? 'world';
    $context->log("Said hello to $name.");
    return $context->res->json([
        'message' => "Hello, $name!",
        'method' => $context->req->method,
        'path' => $context->req->path,
        'runtime' => 'php ' . PHP_VERSION,
    ]);
};
