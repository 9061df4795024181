<?php

// What the server is told by its environment, read once at start.

declare(strict_types=1);

namespace Runtime;

/** The paths and the port are the protocol's own. */
final class Settings
{
    public int $port = 3000;
    public string $codeDir;
    public string $logsDir = '/mnt/logs';
    public string $timingsFile = '/mnt/telemetry/timings.txt';
    public ?float $startupBegan = null;
    public string $secret = '';
    /** The caller's credential with that secret, which is not the function's to see. */
    public ?string $ownCredential = null;
    public bool $isDevelopment = false;
    public string $entrypoint = 'index.php';
    /** @var array<string, string> */
    public array $enforcedHeaders = [];

    /** @param array<string, string> $env */
    public static function fromEnvironment(array $env): self
    {
        $settings = new self();
        $settings->codeDir = dirname(__DIR__) . '/function';
        $settings->secret = $env['OPEN_RUNTIMES_SECRET'] ?? '';
        if ($settings->secret !== '') {
            $settings->ownCredential = 'Basic ' . base64_encode("opr:$settings->secret");
        }
        $settings->isDevelopment = ($env['OPEN_RUNTIMES_ENV'] ?? '') === 'development';
        $settings->entrypoint = ($env['OPEN_RUNTIMES_ENTRYPOINT'] ?? '') ?: $settings->entrypoint;
        $settings->enforcedHeaders = parse_enforced_headers($env['OPEN_RUNTIMES_HEADERS'] ?? '');
        $began = $env['OPEN_RUNTIMES_STARTUP_BEGAN'] ?? '';
        $settings->startupBegan = is_numeric($began) ? (float) $began : null;
        return $settings;
    }
}

/**
 * Lower-cased names with text values; anything that is no JSON object means none.
 *
 * @return array<string, string>
 */
function parse_enforced_headers(string $text): array
{
    $parsed = json_decode($text);
    $headers = [];
    foreach ($parsed instanceof \stdClass ? $parsed : [] as $name => $value) {
        $headers[strtolower($name)] = is_string($value) ? $value : json_encode($value, JSON_FLAGS);
    }
    return $headers;
}
