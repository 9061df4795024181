<?php

// Frames between the server and a worker, over a pair of sockets: two lengths, a serialised head, a body.

declare(strict_types=1);

namespace Runtime;

final class Channel
{
    public bool $isClosed = false;
    private string $input = '';
    private string $output = '';

    /** @param resource $socket */
    public function __construct(public readonly mixed $socket, bool $isBlocking = true)
    {
        stream_set_blocking($socket, $isBlocking);
        stream_set_read_buffer($socket, 0);
    }

    /** @param array<mixed> $head */
    public function send(array $head, string $body): void
    {
        $text = serialize($head);
        $this->output .= pack('NN', strlen($text), strlen($body)) . $text . $body;
        $this->flush();
    }

    public function hasOutput(): bool
    {
        return $this->output !== '' && !$this->isClosed;
    }

    /** Writes as much as the socket takes; all of it where it blocks. */
    public function flush(): void
    {
        $written = (int) @fwrite($this->socket, $this->output);
        $this->output = $written === strlen($this->output) ? '' : substr($this->output, $written);
    }

    /**
     * The next frame, waiting for it; null where there will be none.
     *
     * @return array{array<mixed>, string}|null
     */
    public function receive(): ?array
    {
        while (($frame = $this->frame()) === null) {
            if (!$this->read()) {
                return null;
            }
        }
        return $frame;
    }

    /**
     * All frames that are there, without waiting.
     *
     * @return list<array{array<mixed>, string}>
     */
    public function receiveAll(): array
    {
        $this->isClosed = !$this->read();
        $frames = [];
        while (($frame = $this->frame()) !== null) {
            $frames[] = $frame;
        }
        return $frames;
    }

    public function close(): void
    {
        if (is_resource($this->socket)) {
            fclose($this->socket);
        }
        $this->isClosed = true;
    }

    private function read(): bool
    {
        $bytes = @fread($this->socket, READ_SIZE);
        $this->input .= $bytes;
        return $bytes !== false && ($bytes !== '' || !feof($this->socket));
    }

    /** @return array{array<mixed>, string}|null */
    private function frame(): ?array
    {
        if (strlen($this->input) < 8) {
            return null;
        }
        ['head' => $head, 'body' => $body] = unpack('Nhead/Nbody', $this->input);
        if (strlen($this->input) < 8 + $head + $body) {
            return null;
        }
        $frame = [unserialize(substr($this->input, 8, $head), ['allowed_classes' => false]), substr($this->input, 8 + $head, $body)];
        $this->input = substr($this->input, 8 + $head + $body);
        return $frame;
    }
}
