<?php

namespace Todos;

/** Asks a service for what is to do. */
class Client
{
    public function __construct(private string $url)
    {
    }

    public function find(int $id): ?array
    {
        return json_decode(file_get_contents("{$this->url}/{$id}"), true);
    }
}
