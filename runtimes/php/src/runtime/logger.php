<?php

// The two log files of an execution. A silent function costs no file; what is logged is on disk at once, since the function's
// process may be ended at any time; failing to write never fails the execution.

declare(strict_types=1);

namespace Runtime;

const RECORD_LIMIT = 8_000;
const TRUNCATED = '... Log truncated due to size limit (8000 characters)';
const NATIVE_NOTICE = "Native logs detected. Use context.log() or context.error() for better experience.\n";
// Callers read 5 MiB of a file and say so when there is more: what lies further back would only fill the disk.
const FILE_LIMIT = 5 * 1024 * 1024 + 64 * 1024;

/** One log file, opened with its first text. */
final class LogFile
{
    /** @var resource|null */
    private $file = null;
    private int $room = FILE_LIMIT;

    public function __construct(private string $path)
    {
    }

    public function write(string $text): void
    {
        if ($this->room <= 0) {
            return;
        }
        $this->file ??= @fopen($this->path, 'ab') ?: null;
        if ($this->file === null || @fwrite($this->file, substr($text, 0, $this->room)) === false) {
            $this->room = 0;
        }
        $this->room -= strlen($text);
    }

    public function close(): void
    {
        if ($this->file !== null) {
            fclose($this->file);
        }
        $this->file = null;
        $this->room = 0;
    }
}

/** The log of one execution; after `close` nothing is written any more. An empty id means that its caller wants none. */
final class Logger
{
    private ?LogFile $logs = null;
    private ?LogFile $errors = null;
    private bool $isNative = false;
    private bool $endsLine = true;

    public function __construct(string $directory, public readonly string $id)
    {
        if ($id !== '') {
            $this->logs = new LogFile("$directory/{$id}_logs.log");
            $this->errors = new LogFile("$directory/{$id}_errors.log");
        }
    }

    public function log(mixed ...$messages): void
    {
        $this->endLine();
        $this->logs?->write(record($messages));
    }

    public function error(mixed ...$messages): void
    {
        $this->errors?->write(record($messages));
    }

    /** What the function printed by other means than its context. */
    public function native(string $text): void
    {
        if ($text === '') {
            return;
        }
        $this->logs?->write($this->isNative ? $text : NATIVE_NOTICE . $text);
        $this->isNative = true;
        $this->endsLine = str_ends_with($text, "\n");
    }

    public function close(): void
    {
        $this->endLine();
        $this->logs?->close();
        $this->errors?->close();
    }

    private function endLine(): void
    {
        if (!$this->endsLine) {
            $this->logs?->write("\n");
            $this->endsLine = true;
        }
    }
}

/**
 * The id asked for where it is a safe file name, else one of the runtime's own; empty where logging is off.
 *
 * @param array<string, string> $headers
 */
function log_id(array $headers, bool $isDevelopment): string
{
    if ((($headers['x-open-runtimes-logging'] ?? '') ?: 'enabled') !== 'enabled') {
        return '';
    }
    $wanted = $headers['x-open-runtimes-log-id'] ?? '';
    if (preg_match('/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/D', $wanted) === 1) {
        return $wanted;
    }
    return $isDevelopment && $wanted === '' ? 'dev' : generate_id();
}

/** Seconds (8 hex digits), fraction of a second (5), random (7). */
function generate_id(): string
{
    $now = microtime(true);
    return sprintf('%08x%05x%07x', (int) $now, (int) (fmod($now, 1) * 1_000_000), random_int(0, 0xfffffff));
}

/** @param list<mixed> $messages */
function record(array $messages): string
{
    $text = implode(' ', array_map(to_text(...), $messages));
    return (strlen($text) > RECORD_LIMIT ? substr($text, 0, RECORD_LIMIT) . TRUNCATED : $text) . "\n";
}

function to_text(mixed $value): string
{
    try {
        return match (true) {
            is_string($value) => $value,
            is_int($value), is_float($value), $value instanceof \Stringable => (string) $value,
            is_resource($value), is_object($value) && !$value instanceof \JsonSerializable && !$value instanceof \stdClass
                => get_debug_type($value),
            default => json_encode($value, JSON_FLAGS | JSON_INVALID_UTF8_SUBSTITUTE | JSON_PARTIAL_OUTPUT_ON_ERROR),
        };
    } catch (\Throwable) {
        return get_debug_type($value);
    }
}
