<?php

// In the place of a service on the Internet.
$server = stream_socket_server('tcp://127.0.0.1:9999');
while (true) {
    $client = stream_socket_accept($server, -1);
    if ($client === false) {
        continue;
    }
    $isKnown = str_starts_with((string) fgets($client), 'GET /todos/2 ');
    fwrite($client, "HTTP/1.0 200 OK\r\n\r\n" . ($isKnown ? '{"userId": 13}' : '{}'));
    fclose($client);
}
