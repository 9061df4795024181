<?php

// `$context->res`, and how what a function returns becomes status, headers and bytes.

declare(strict_types=1);

namespace Runtime;

const JSON_FLAGS = JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES | JSON_PRESERVE_ZERO_FRACTION;
// The framing of the message is the server's.
const FRAMING = ['content-length', 'transfer-encoding', 'connection', 'keep-alive', 'upgrade', 'trailer'];

/** Each method makes an output and sends nothing: the one that is returned counts. */
final class FunctionResponse
{
    /** @param array<string, mixed> $headers */
    public function text(string|int|float|bool|\Stringable $body, int $statusCode = 200, array $headers = []): array
    {
        return $this->binary((string) $body, $statusCode, $headers);
    }

    /** @param array<string, mixed> $headers */
    public function json(mixed $object, int $statusCode = 200, array $headers = []): array
    {
        $others = array_filter($headers, fn ($name) => strtolower((string) $name) !== 'content-type', ARRAY_FILTER_USE_KEY);
        // An empty array is what `{}` has become when it was read.
        $text = $object === [] ? '{}' : to_json($object);
        return $this->binary($text, $statusCode, [...$others, 'content-type' => 'application/json']);
    }

    /** @param array<string, mixed> $headers */
    public function binary(mixed $bytes, int $statusCode = 200, array $headers = []): array
    {
        return ['body' => $bytes, 'statusCode' => $statusCode, 'headers' => $headers];
    }

    public function empty(): array
    {
        return $this->binary('', 204);
    }

    /** @param array<string, mixed> $headers */
    public function redirect(string $url, int $statusCode = 301, array $headers = []): array
    {
        $others = array_filter($headers, fn ($name) => strtolower((string) $name) !== 'location', ARRAY_FILTER_USE_KEY);
        return $this->binary('', $statusCode, [...$others, 'location' => $url]);
    }

    /**
     * The old form of `text` and `binary`.
     *
     * @param array<string, mixed> $headers
     */
    public function send(mixed $body, int $statusCode = 200, array $headers = []): array
    {
        return $this->binary($body, $statusCode, $headers);
    }
}

/**
 * Ready to send; headers are pairs.
 *
 * @return array{int, list<array{string, string}>, string}
 */
function render(mixed $output): array
{
    $output = is_object($output) ? get_object_vars($output) : $output;
    if (!is_array($output)) {
        throw new \TypeError('The function must return an output of context.res, not ' . get_debug_type($output) . '.');
    }
    $status = $output['statusCode'] ?? 200;
    if (!is_numeric($status) || (int) $status < 200 || (int) $status > 999) {
        throw new \ValueError('Invalid status code: ' . to_json($status));
    }
    return [(int) $status, render_headers($output['headers'] ?? []), to_bytes($output['body'] ?? '')];
}

/**
 * @param iterable<string, mixed> $given
 * @return list<array{string, string}>
 */
function render_headers(iterable $given): array
{
    $headers = [];
    $contentType = null;
    foreach ($given as $name => $value) {
        $name = strtolower((string) $name);
        if (str_starts_with($name, CONTROL) || in_array($name, FRAMING, true) || $value === null) {
            continue;
        }
        if ($name === 'content-type') {
            $contentType = (string) $value;
            continue;
        }
        foreach (is_array($value) ? $value : [$value] as $one) {
            $headers[] = [$name, is_bool($one) ? to_json($one) : (string) $one];
        }
    }
    $headers[] = ['content-type', with_charset($contentType)];
    return $headers;
}

function with_charset(?string $value): string
{
    if ($value === null) {
        return 'text/plain; charset=utf-8';
    }
    $lower = strtolower($value);
    return str_starts_with($lower, 'multipart/') || str_contains($lower, 'charset=') ? $value : "$lower; charset=utf-8";
}

/** Bytes of any body a function may give. */
function to_bytes(mixed $body): string
{
    return match (true) {
        is_string($body) => $body,
        is_resource($body) => stream_get_contents($body),
        $body instanceof \Stringable, is_int($body), is_float($body) => (string) $body,
        default => to_json($body),
    };
}

function to_json(mixed $value): string
{
    return json_encode($value, JSON_FLAGS | JSON_THROW_ON_ERROR);
}
