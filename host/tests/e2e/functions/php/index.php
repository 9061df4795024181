<?php

require_once __DIR__ . '/vendor/autoload.php';

use Todos\Client;

// TODO_URL takes the place of a service on the Internet.
return function ($context) {
    $todos = new Client(getenv('TODO_URL') ?: 'https://dummyjson.com/todos');
    $id = json_decode($context->req->bodyText, true)['id'] ?? 1;
    $context->log('Sample Log');
    return $context->res->json([
        'isTest' => true,
        'message' => 'Hello Open Runtimes 👋',
        'url' => $context->req->url,
        'variable' => getenv('TEST_VARIABLE') ?: '',
        'todo' => $todos->find((int) $id),
    ]);
};
