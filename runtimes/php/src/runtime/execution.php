<?php

// One request from its first line to its answer, in the protocol's order:
// special paths, authentication, timeout, log, body, function, response.

declare(strict_types=1);

namespace Runtime;

const MAX_TIMEOUT_S = 2_147_483;
const UNAUTHORIZED = 'Unauthorized. Provide correct "x-open-runtimes-secret" header.';
const BAD_TIMEOUT = 'Header "x-open-runtimes-timeout" must be an integer greater than 0.';
const TIMED_OUT = 'Execution timed out.';
const PLAIN = ['content-type', 'text/plain; charset=utf-8'];

/** All executions of this server. */
final class Executions
{
    public function __construct(public readonly Settings $settings, private Workers $workers)
    {
    }

    /** A head has been read: answers at once what needs neither body nor function. */
    public function begin(Message $message, Connection $connection): void
    {
        $path = explode('?', $message->target, 2)[0];
        if ($path === '/__opr/health') {
            $connection->answer(200, [PLAIN], 'OK');
        } elseif ($path === '/__opr/timings') {
            $connection->answer(200, [PLAIN], (string) @file_get_contents($this->settings->timingsFile));
        } elseif (!$this->isAuthorized($message)) {
            $connection->answer(401, [PLAIN], UNAUTHORIZED);
        } elseif (parse_timeout($message->headers['x-open-runtimes-timeout'] ?? '') === null) {
            $connection->answer(500, [PLAIN], BAD_TIMEOUT);
        } elseif ($message->length > BODY_LIMIT) {
            $this->run($message, $connection);
        }
    }

    /** The body has been read, or is too large to be. */
    public function run(Message $message, Connection $connection): void
    {
        $execution = new Execution($this->settings, $message, $connection);
        if ($message->length > BODY_LIMIT) {
            $execution->answer(413);
        } else {
            $this->workers->submit($execution);
        }
    }

    private function isAuthorized(Message $message): bool
    {
        $secret = $this->settings->secret;
        return $secret === '' || hash_equals($secret, $message->headers['x-open-runtimes-secret'] ?? '');
    }
}

/** One execution; it is answered exactly once, by its worker or in its place. */
final class Execution
{
    public readonly string $logId;
    public readonly int $seconds;
    public readonly float $submitted;
    /** When it times out, once it runs. */
    public float $deadline = INF;

    public function __construct(private Settings $settings, public readonly Message $message, private Connection $connection)
    {
        $this->logId = log_id($message->headers, $settings->isDevelopment);
        $this->seconds = parse_timeout($message->headers['x-open-runtimes-timeout'] ?? '');
        $this->submitted = microtime(true);
    }

    /** Answers in the function's place; `$error` goes to the error log. */
    public function answer(int $status, ?string $error = null): void
    {
        if ($error !== null) {
            $logger = new Logger($this->settings->logsDir, $this->logId);
            $logger->error($error);
            $logger->close();
        }
        $this->send($status, [PLAIN], '');
    }

    /**
     * Sends what the worker has rendered.
     *
     * @param list<array{string, string}> $headers
     */
    public function send(int $status, array $headers, string $body): void
    {
        if ($this->connection->isOpen) {
            $headers[] = ['x-open-runtimes-log-id', $this->logId];
            $this->connection->answer($status, $headers, $body);
        }
    }
}

/** Whole seconds; 0 where none are asked for; null where the text is no positive integer. */
function parse_timeout(string $text): ?int
{
    if ($text === '') {
        return 0;
    }
    $seconds = ctype_digit($text) ? (int) min((float) $text, MAX_TIMEOUT_S) : 0;
    return $seconds > 0 ? $seconds : null;
}
