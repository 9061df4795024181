<?php

// The process that runs the function: it loads the entrypoint, then answers one execution after another.

declare(strict_types=1);

namespace Runtime;

const NO_RETURN = 'Return statement missing. return $context->res->empty() if no response is expected.';

/** What a function is called with. */
final class Context
{
    public function __construct(
        public readonly Request $req,
        public readonly FunctionResponse $res,
        private readonly Logger $logger,
    ) {
    }

    public function log(mixed ...$messages): void
    {
        $this->logger->log(...$messages);
    }

    public function error(mixed ...$messages): void
    {
        $this->logger->error(...$messages);
    }
}

/** Serves the channel until the server closes it. */
function work(Settings $settings, Channel $channel): never
{
    posix_setsid();
    Native::capture();
    $isLoaded = false;
    register_shutdown_function(static function () use ($channel, &$isLoaded): void {
        $error = error_get_last();
        $reason = $error === null ? 'the function ended its process.' : "{$error['message']} in {$error['file']}:{$error['line']}";
        if (!$isLoaded) {
            $channel->send(['failure' => "Failed to load module: $reason"], '');
        } elseif (Native::$current !== null) {
            Native::$current->error(ucfirst($reason));
            finish($channel, 500, [PLAIN], '', isLast: true);
        }
    });
    [$main, $failure] = load($settings->codeDir, $settings->entrypoint);
    $isLoaded = true;
    $channel->send(['failure' => $failure], '');
    while ($main !== null && ($call = $channel->receive()) !== null) {
        [[$logId, $method, $target, $headers, $authorizations], $body] = $call;
        $message = new Message();
        [$message->method, $message->target] = [$method, $target];
        [$message->headers, $message->authorizations] = [$headers, $authorizations];
        Native::$current = $logger = new Logger($settings->logsDir, $logId);
        try {
            $context = new Context(new Request($message, $settings, $body), new FunctionResponse(), $logger);
            [$status, $headers, $body] = call($main, $context);
        } catch (\Throwable $error) {
            $logger->error((string) $error);
            [$status, $headers, $body] = [500, [PLAIN], ''];
        }
        unset($context, $error);
        finish($channel, $status, $headers, $body);
    }
    exit(0);
}

/** @return array{int, list<array{string, string}>, string} */
function call(callable $main, Context $context): array
{
    $output = $main($context);
    if ($output === null) {
        $context->error(NO_RETURN);
        return [500, [PLAIN], ''];
    }
    $rendered = render($output);
    // Fails for what cannot be sent, while the error log is still open.
    encode_head($rendered[0], $rendered[1]);
    return $rendered;
}

/** @param list<array{string, string}> $headers */
function finish(Channel $channel, int $status, array $headers, string $body, bool $isLast = false): void
{
    Native::settle();
    Native::$current->close();
    Native::$current = null;
    $channel->send(['status' => $status, 'headers' => $headers, 'isLast' => $isLast], $body);
}
