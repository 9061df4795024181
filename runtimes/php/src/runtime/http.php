<?php

// HTTP/1.1 on one connection, without waiting: bytes in, messages out. Strict where two readers could disagree.

declare(strict_types=1);

namespace Runtime;

const HEAD_LIMIT = 128 * 1024;
const BODY_LIMIT = 20 * 1024 * 1024;
// What a caller may go on sending after an early answer until its connection is cut.
const DISCARD_LIMIT = 64 * 1024 * 1024;
const READ_SIZE = 256 * 1024;
const REASONS = [
    200 => 'OK', 204 => 'No Content', 301 => 'Moved Permanently', 302 => 'Found', 304 => 'Not Modified', 400 => 'Bad Request',
    401 => 'Unauthorized', 404 => 'Not Found', 413 => 'Content Too Large', 500 => 'Internal Server Error',
    503 => 'Service Unavailable',
];
const TOKEN = '/^[!#$%&\'*+.^_`|~0-9A-Za-z-]+$/D';

/** A message that cannot be understood: the code is the answer's status, after which the connection ends. */
final class HttpError extends \Exception
{
}

/** A request. Header names are lower-cased; repeats are joined, but of `authorization`, which are all kept. */
final class Message
{
    public string $method;
    public string $target;
    /** @var array<string, string> */
    public array $headers = [];
    /** @var list<string> */
    public array $authorizations = [];
    /** Of the body, in bytes; null where it comes in chunks. */
    public ?int $length = 0;
    public bool $keepsAlive = true;
    public string $body = '';
    /** Whether the body is still wanted. */
    public bool $isWanted = true;

    public function isInvited(): bool
    {
        return strtolower($this->headers['expect'] ?? '') === '100-continue';
    }
}

/** What a connection waits for. */
enum Expected
{
    case Head;
    case Body;
    case ChunkSize;
    case Chunk;
    case ChunkEnd;
    case Trailer;
    case Answer;
}

/** One accepted socket. `$begin` is called with each head, and answers at once where it does not want the body. */
final class Connection
{
    public bool $isOpen = true;
    public ?Message $message = null;
    private Expected $expected = Expected::Head;
    private string $input = '';
    private string $output = '';
    private bool $isEnding = false;
    private bool $isAdvancing = false;
    /** Of the body or chunk that is being read, and of all chunks so far. */
    private int $missing = 0;
    private int $total = 0;

    /**
     * @param resource $socket
     * @param \Closure(Message, Connection): void $begin
     * @param \Closure(Message, Connection): void $run
     */
    public function __construct(public readonly mixed $socket, private \Closure $begin, private \Closure $run)
    {
        stream_set_blocking($socket, false);
        stream_set_read_buffer($socket, 0);
    }

    public function wantsInput(): bool
    {
        return $this->isOpen && $this->expected !== Expected::Answer;
    }

    public function hasOutput(): bool
    {
        return $this->isOpen && $this->output !== '';
    }

    public function isIdle(): bool
    {
        return $this->expected === Expected::Head && $this->input === '' && $this->output === '';
    }

    /** The socket has something to read. */
    public function receive(): void
    {
        $bytes = @fread($this->socket, READ_SIZE);
        if ($bytes === false || ($bytes === '' && feof($this->socket))) {
            $this->close();
            return;
        }
        $this->input .= $bytes;
        $this->advance();
    }

    /** Answers the message that has been read, or is being read. */
    public function answer(int $status, array $headers, string $body): void
    {
        $message = $this->message;
        $isBodiless = $status === 204 || $status === 304;
        if (!$isBodiless) {
            $headers[] = ['content-length', (string) strlen($body)];
        }
        // A caller that waits to be invited sends no body: what comes next would be taken for one.
        if ($this->expected !== Expected::Answer && $message->isInvited()) {
            $message->keepsAlive = false;
        }
        if (!$message->keepsAlive) {
            $headers[] = ['connection', 'close'];
        }
        $head = encode_head($status, $headers);
        $message->isWanted = false;
        $this->send($isBodiless || $message->method === 'HEAD' ? $head : $head . $body);
        // Otherwise the rest of the body is read first, so that the caller comes to read the answer.
        if ($this->expected === Expected::Answer || $message->isInvited()) {
            $this->finish();
            $this->advance();
        }
    }

    /** Writes as much as the socket takes. */
    public function flush(): void
    {
        $written = @fwrite($this->socket, $this->output);
        if ($written === false) {
            $this->close();
            return;
        }
        $this->output = substr($this->output, $written);
        if ($this->output === '' && $this->isEnding) {
            $this->close();
        }
    }

    public function close(): void
    {
        if ($this->isOpen) {
            $this->isOpen = false;
            fclose($this->socket);
        }
    }

    private function send(string $bytes): void
    {
        $this->output .= $bytes;
        $this->flush();
    }

    /** No more requests; what has been answered still leaves. */
    private function end(): void
    {
        $this->expected = Expected::Answer;
        $this->isEnding = true;
        if ($this->output === '') {
            $this->close();
        }
    }

    /** Request and answer are done with. */
    private function finish(): void
    {
        if (!$this->message->keepsAlive) {
            $this->end();
            return;
        }
        $this->expected = Expected::Head;
        $this->message = null;
        $this->total = 0;
    }

    private function advance(): void
    {
        // An answer that is given at once comes back to here.
        if ($this->isAdvancing) {
            return;
        }
        $this->isAdvancing = true;
        try {
            while ($this->isOpen && $this->step());
        } catch (HttpError $error) {
            $this->message ??= new Message();
            $this->message->keepsAlive = false;
            if ($this->message->isWanted) {
                $this->send(encode_head($error->getCode(), [['content-length', '0'], ['connection', 'close']]));
            }
            $this->end();
        }
        $this->isAdvancing = false;
    }

    /** Takes one part from the input; false where it is not whole yet. */
    private function step(): bool
    {
        switch ($this->expected) {
            case Expected::Head:
                return $this->readHead();
            case Expected::Body:
                return $this->take() && $this->complete();
            case Expected::Chunk:
                if (!$this->take()) {
                    return false;
                }
                $this->expected = Expected::ChunkEnd;
                return true;
            case Expected::ChunkSize:
            case Expected::ChunkEnd:
            case Expected::Trailer:
                $line = $this->takeLine();
                return $line !== null && $this->readChunkLine($line);
            case Expected::Answer:
                return false;
        }
    }

    private function readHead(): bool
    {
        // RFC 9112, 2.2: an empty line before a request line is skipped.
        if (str_starts_with($this->input, "\r\n")) {
            $this->input = substr($this->input, 2);
        }
        $end = strpos($this->input, "\r\n\r\n");
        if ($end === false || $end > HEAD_LIMIT) {
            return strlen($this->input) > HEAD_LIMIT ? throw new HttpError('', 431) : false;
        }
        $message = parse_head(substr($this->input, 0, $end));
        $this->input = substr($this->input, $end + 4);
        $this->message = $message;
        $this->missing = $message->length ?? 0;
        $this->expected = match ($message->length) {
            null => Expected::ChunkSize,
            0 => Expected::Answer,
            default => Expected::Body,
        };
        ($this->begin)($message, $this);
        if ($this->message !== $message || !$this->isOpen) {
            return $this->isOpen;
        }
        if ($this->expected === Expected::Answer) {
            return $this->complete();
        }
        if ($message->isWanted && $message->isInvited()) {
            $this->send("HTTP/1.1 100 Continue\r\n\r\n");
        }
        if (!$message->isWanted && $this->missing > DISCARD_LIMIT) {
            $this->end();
        }
        return true;
    }

    /** Moves bytes of the body from the input; true when it has all of them. */
    private function take(): bool
    {
        $bytes = substr($this->input, 0, $this->missing);
        $this->input = substr($this->input, strlen($bytes));
        $this->missing -= strlen($bytes);
        if ($this->message->isWanted) {
            $this->message->body .= $bytes;
        }
        return $this->missing === 0;
    }

    private function takeLine(): ?string
    {
        $end = strpos($this->input, "\r\n");
        if ($end === false) {
            return strlen($this->input) > HEAD_LIMIT ? throw new HttpError('', 431) : null;
        }
        $line = substr($this->input, 0, $end);
        $this->input = substr($this->input, $end + 2);
        return $line;
    }

    private function readChunkLine(string $line): bool
    {
        if ($this->expected === Expected::Trailer) {
            return $line !== '' || $this->complete();
        }
        if ($this->expected === Expected::ChunkEnd) {
            $this->expected = Expected::ChunkSize;
            return $line === '' ? true : throw new HttpError('', 400);
        }
        $size = trim(explode(';', $line, 2)[0]);
        if (!ctype_xdigit($size) || strlen($size) > 8) {
            throw new HttpError('', 400);
        }
        $this->missing = (int) hexdec($size);
        $this->total += $this->missing;
        $this->expected = $this->missing === 0 ? Expected::Trailer : Expected::Chunk;
        if ($this->total > BODY_LIMIT && $this->message->isWanted) {
            $this->message->body = '';
            $this->refuse();
        }
        if ($this->total > DISCARD_LIMIT) {
            $this->end();
        }
        return true;
    }

    /** The body is beyond the limit; nothing of it is kept. */
    private function refuse(): void
    {
        $this->message->length = BODY_LIMIT + 1;
        ($this->run)($this->message, $this);
    }

    private function complete(): bool
    {
        $this->expected = Expected::Answer;
        if ($this->message->isWanted) {
            ($this->run)($this->message, $this);
        } else {
            $this->finish();
        }
        return true;
    }
}

/**
 * Fails for what cannot be sent.
 *
 * @param list<array{string, string}> $headers
 */
function encode_head(int $status, array $headers): string
{
    $head = "HTTP/1.1 $status " . (REASONS[$status] ?? '') . "\r\n";
    foreach ($headers as [$name, $value]) {
        if (strpbrk($value, "\r\n\0") !== false) {
            throw new \ValueError("Invalid value of header $name.");
        }
        if (preg_match(TOKEN, $name) !== 1) {
            throw new \ValueError("Invalid header name: $name.");
        }
        $head .= "$name: $value\r\n";
    }
    return "$head\r\n";
}

function parse_head(string $head): Message
{
    $lines = explode("\r\n", $head);
    $words = explode(' ', array_shift($lines));
    if (count($words) !== 3 || preg_match('/^HTTP\/1\.[01]$/D', $words[2]) !== 1 || $words[1] === '' || preg_match(TOKEN, $words[0]) !== 1) {
        throw new HttpError('', 400);
    }
    $message = new Message();
    [$message->method, $message->target, $version] = $words;
    foreach ($lines as $line) {
        [$name, $value] = explode(':', $line, 2) + [1 => null];
        if ($value === null || preg_match(TOKEN, $name) !== 1) {
            throw new HttpError('', 400);
        }
        $name = strtolower($name);
        $value = trim($value, " \t");
        if ($name === 'authorization') {
            $message->authorizations[] = $value;
        }
        if (!isset($message->headers[$name])) {
            $message->headers[$name] = $value;
        } elseif ($name === 'content-length') {
            $value === $message->headers[$name] ?: throw new HttpError('', 400);
        } elseif (!in_array($name, ['host', 'content-type', 'authorization'], true)) {
            $message->headers[$name] .= ($name === 'cookie' ? '; ' : ', ') . $value;
        }
    }
    frame($message, $version);
    return $message;
}

/** Where the body ends, and whether another request may follow. */
function frame(Message $message, string $version): void
{
    $headers = $message->headers;
    $length = $headers['content-length'] ?? '0';
    if (!ctype_digit($length) || strlen($length) > 18) {
        throw new HttpError('', 400);
    }
    $message->length = (int) $length;
    $coding = $headers['transfer-encoding'] ?? null;
    if ($coding !== null) {
        if (strtolower($coding) !== 'chunked' || isset($headers['content-length']) || $version === 'HTTP/1.0') {
            throw new HttpError('', 400);
        }
        $message->length = null;
    }
    $options = strtolower($headers['connection'] ?? '');
    $message->keepsAlive = !str_contains($options, 'close') && ($version === 'HTTP/1.1' || str_contains($options, 'keep-alive'));
}
