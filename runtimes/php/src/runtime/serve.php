<?php

// Owns the listening socket, the signals and the life of the process; what a request means is `execution.php`'s matter.

declare(strict_types=1);

namespace Runtime;

foreach (['settings', 'http', 'channel', 'logger', 'native', 'request', 'response', 'loader', 'worker', 'workers', 'execution'] as $part) {
    require __DIR__ . "/$part.php";
}

const BACKLOG = 4096;
// select(2) knows descriptors below 1024: connections beyond this wait in the backlog.
const MAX_CONNECTIONS = 900;
// How long a stopping server waits for executions that are under way.
const DRAIN_S = 5.0;

/** Binds, announces readiness, loads the function, and serves until a signal. Returns the exit status. */
function serve(Settings $settings): int
{
    $listener = bind($settings->port);
    if ($listener === false) {
        return 1;
    }
    fwrite(STDOUT, "HTTP server successfully started!\n");
    note_startup($settings);
    return (new Server($settings, $listener))->run();
}

/**
 * All interfaces, both families where there are both.
 *
 * @return resource|false
 */
function bind(int $port)
{
    // Accepted sockets inherit it: an answer leaves at once.
    $options = ['backlog' => BACKLOG, 'tcp_nodelay' => true, 'ipv6_v6only' => false];
    $context = stream_context_create(['socket' => $options]);
    $flags = STREAM_SERVER_BIND | STREAM_SERVER_LISTEN;
    foreach (["tcp://[::]:$port", "tcp://0.0.0.0:$port"] as $address) {
        $listener = @stream_socket_server($address, $_, $error, $flags, $context);
        if ($listener !== false) {
            stream_set_blocking($listener, false);
            return $listener;
        }
    }
    fwrite(STDERR, "HTTP server failed: $error\n");
    return false;
}

/** The `startup` metric, where the start lifecycle told when it began. */
function note_startup(Settings $settings): void
{
    if ($settings->startupBegan !== null) {
        $line = sprintf("startup=%.3f\n", microtime(true) - $settings->startupBegan);
        @file_put_contents($settings->timingsFile, $line, FILE_APPEND);
    }
}

/** The loop: waits for what speaks next, the listener, a connection or a worker. */
final class Server
{
    private Workers $workers;
    private Executions $executions;
    /** @var array<int, Connection> */
    private array $connections = [];
    private float $drainUntil = INF;

    /** @param resource $listener */
    public function __construct(private Settings $settings, private $listener)
    {
        $this->workers = new Workers($settings, $this->leave(...));
        $this->executions = new Executions($settings, $this->workers);
    }

    public function run(): int
    {
        pcntl_async_signals(true);
        pcntl_signal(SIGTERM, $this->stop(...));
        pcntl_signal(SIGINT, $this->stop(...));
        pcntl_signal(SIGCHLD, static fn () => null);
        $this->workers->start();
        while (!$this->isOver()) {
            $this->wait();
            $this->workers->reap();
            $this->workers->look();
            $this->connections = array_filter($this->connections, fn (Connection $connection) => $connection->isOpen);
        }
        return 0;
    }

    private function wait(): void
    {
        $reads = count($this->connections) < MAX_CONNECTIONS ? ['listener' => $this->listener] : [];
        $writes = [];
        foreach ($this->connections as $id => $connection) {
            if ($connection->wantsInput()) {
                $reads[$id] = $connection->socket;
            }
            if ($connection->hasOutput()) {
                $writes[$id] = $connection->socket;
            }
        }
        foreach ($this->workers->all() as $pid => $worker) {
            $reads["worker $pid"] = $worker->channel->socket;
            if ($worker->channel->hasOutput()) {
                $writes["worker $pid"] = $worker->channel->socket;
            }
        }
        $until = min($this->workers->nextLook(), $this->drainUntil);
        $micros = $until === INF ? null : (int) max(0, ($until - microtime(true)) * 1_000_000) + 1;
        $others = null;
        // A signal ends the wait.
        if (@stream_select($reads, $writes, $others, $micros === null ? null : 0, $micros) === false) {
            return;
        }
        foreach (array_keys($writes) as $id) {
            is_int($id) ? $this->connections[$id]->flush() : $this->worker($id)?->channel->flush();
        }
        foreach (array_keys($reads) as $id) {
            if ($id === 'listener') {
                $this->accept();
            } elseif (!is_int($id)) {
                $worker = $this->worker($id);
                if ($worker !== null) {
                    $this->workers->receive($worker);
                }
            } elseif ($this->connections[$id]->isOpen) {
                $this->connections[$id]->receive();
            }
        }
    }

    private function worker(string $id): ?Worker
    {
        return $this->workers->all()[(int) substr($id, strlen('worker '))] ?? null;
    }

    private function accept(): void
    {
        // Many at a time, but not for ever: others have spoken meanwhile.
        for ($count = 0; $count < 64 && ($socket = @stream_socket_accept($this->listener, 0)) !== false; $count++) {
            $connection = new Connection($socket, $this->executions->begin(...), $this->executions->run(...));
            $this->connections[get_resource_id($socket)] = $connection;
        }
    }

    private function stop(): void
    {
        $this->drainUntil = min($this->drainUntil, microtime(true) + DRAIN_S);
    }

    private function isOver(): bool
    {
        if ($this->drainUntil === INF) {
            return false;
        }
        $hasOutput = array_filter($this->connections, fn (Connection $connection) => $connection->hasOutput()) !== [];
        return microtime(true) >= $this->drainUntil || (!$this->workers->isBusy() && !$hasOutput);
    }

    /** What a worker must not have: the sockets and the signals of the server. */
    private function leave(): void
    {
        foreach ([SIGTERM, SIGINT, SIGCHLD] as $signal) {
            pcntl_signal($signal, SIG_DFL);
        }
        fclose($this->listener);
        foreach ($this->connections as $connection) {
            $connection->close();
        }
    }
}
