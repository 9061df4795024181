<?php

// `$context->req`: the HTTP request as the function sees it.

declare(strict_types=1);

namespace Runtime;

const CONTROL = 'x-open-runtimes-';

/**
 * The request of one execution; bodies are decoded when they are asked for.
 *
 * @property-read string $bodyBinary
 * @property-read string $bodyText
 * @property-read mixed $bodyJson
 * @property-read mixed $body
 * @property-read string $bodyRaw the old name of `bodyText`
 */
final class Request
{
    public string $method;
    public string $scheme;
    public string $host;
    public int $port;
    public string $path;
    public string $queryString;
    /** @var array<string, string> */
    public array $query;
    /** @var array<string, string> */
    public array $headers;
    public string $url;

    public function __construct(Message $message, Settings $settings, private string $bytes)
    {
        $target = origin_form($message->target);
        $headers = $message->headers;
        $this->method = strtoupper($message->method);
        $this->scheme = ($headers['x-forwarded-proto'] ?? '') ?: 'http';
        [$this->host, $this->port] = authority($headers['host'] ?? '', $this->scheme);
        [$this->path, $this->queryString] = explode('?', $target, 2) + [1 => ''];
        $this->query = parse_query($this->queryString);
        $this->headers = function_headers($message, $settings);
        $port = $this->port === default_port($this->scheme) ? '' : ":$this->port";
        $query = $this->queryString === '' ? '' : "?$this->queryString";
        $this->url = "$this->scheme://$this->host$port$this->path$query";
    }

    public function __get(string $name): mixed
    {
        return match ($name) {
            'bodyBinary', 'bodyText', 'bodyRaw' => $this->bytes,
            'bodyJson' => $this->json(),
            'body' => $this->isJson() ? ($this->bytes === '' ? [] : $this->json()) : $this->bytes,
            default => throw new \Error("Undefined property: \$context->req->$name"),
        };
    }

    public function __isset(string $name): bool
    {
        return in_array($name, ['bodyBinary', 'bodyText', 'bodyRaw', 'bodyJson', 'body'], true);
    }

    private function isJson(): bool
    {
        return str_starts_with(strtolower($this->headers['content-type'] ?? 'text/plain'), 'application/json');
    }

    private function json(): mixed
    {
        try {
            return json_decode($this->bytes, associative: true, flags: JSON_THROW_ON_ERROR);
        } catch (\JsonException $error) {
            throw new \JsonException("The body is no JSON: {$error->getMessage()}", $error->getCode(), $error);
        }
    }
}

/** `/path?query` also where a proxy sent the absolute form. */
function origin_form(string $target): string
{
    if (str_starts_with($target, '/') || !str_contains($target, '://')) {
        return $target;
    }
    $slash = strpos($target, '/', strpos($target, '://') + 3);
    return $slash === false ? '/' : substr($target, $slash);
}

function default_port(string $scheme): int
{
    return $scheme === 'https' ? 443 : 80;
}

/** @return array{string, int} */
function authority(string $header, string $scheme): array
{
    $from = str_starts_with($header, '[') ? (int) strpos($header, ']') : 0;
    $colon = strpos($header, ':', $from);
    if ($colon === false) {
        return [$header, default_port($scheme)];
    }
    $port = substr($header, $colon + 1, 9);
    return [substr($header, 0, $colon), ctype_digit($port) ? (int) $port : default_port($scheme)];
}

/**
 * Raw text, split at `&` and at the first `=`; the last of equal keys wins.
 *
 * @return array<string, string>
 */
function parse_query(string $text): array
{
    $query = [];
    foreach (explode('&', $text) as $item) {
        [$key, $value] = explode('=', $item, 2) + [1 => ''];
        if ($key !== '') {
            $query[$key] = $value;
        }
    }
    return $query;
}

/**
 * Without the runtime's own headers and the caller's own credential, below the enforced ones.
 *
 * @return array<string, string>
 */
function function_headers(Message $message, Settings $settings): array
{
    $headers = array_filter($message->headers, fn ($name) => !str_starts_with((string) $name, CONTROL), ARRAY_FILTER_USE_KEY);
    $own = $settings->ownCredential;
    if ($own !== null && ($message->authorizations[0] ?? null) === $own) {
        unset($headers['authorization']);
        foreach ($message->authorizations as $value) {
            if ($value !== $own) {
                $headers['authorization'] = $value;
                break;
            }
        }
    }
    return array_replace($headers, $settings->enforcedHeaders);
}
