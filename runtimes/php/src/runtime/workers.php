<?php

// The processes that run the function, one execution each at a time: more are forked while executions wait, and end when they
// are idle. What a function does to its process, it does to no other execution.
//
//   starting -> idle <-> busy -> ended

declare(strict_types=1);

namespace Runtime;

const MAX_WORKERS = 64;
// How long an execution waits for a worker until another one is forked, and a worker for an execution until it ends.
const WAIT_S = 0.005;
const IDLE_S = 30.0;

/** One worker, as the server sees it. */
final class Worker
{
    public bool $isReady = false;
    public ?Execution $execution = null;
    public float $idleSince = 0.0;
    /** How its process has ended, see wait(2). */
    public ?int $status = null;

    public function __construct(public readonly int $pid, public readonly Channel $channel)
    {
    }
}

final class Workers
{
    /** @var array<int, Worker> by process id */
    private array $workers = [];
    /** @var list<Worker> the most recently used one last */
    private array $idle = [];
    /** @var \SplQueue<Execution> */
    private \SplQueue $waiting;
    private ?string $failure = null;
    private bool $isStarting = false;

    /** @param \Closure(): void $leave closes what a worker must not have */
    public function __construct(private Settings $settings, private \Closure $leave)
    {
        $this->waiting = new \SplQueue();
    }

    public function submit(Execution $execution): void
    {
        if ($this->failure !== null) {
            $execution->answer(503, $this->failure);
        } elseif ($this->idle !== []) {
            $this->dispatch(array_pop($this->idle), $execution);
        } else {
            $this->waiting->enqueue($execution);
        }
    }

    public function isBusy(): bool
    {
        $busy = array_filter($this->workers, fn (Worker $worker) => $worker->execution !== null);
        return !$this->waiting->isEmpty() || $busy !== [];
    }

    /** @return array<int, Worker> */
    public function all(): array
    {
        return $this->workers;
    }

    /** When there is next something to do; a time of `microtime`. */
    public function nextLook(): float
    {
        $times = array_map(fn (Worker $worker) => $worker->execution?->deadline ?? INF, $this->workers);
        if ($this->mayStart()) {
            $times[] = $this->waiting->bottom()->submitted + WAIT_S;
        }
        if (count($this->workers) > 1 && $this->idle !== []) {
            $times[] = $this->idle[0]->idleSince + IDLE_S;
        }
        return min($times ?: [INF]);
    }

    /** Ends what takes too long, starts what is needed, lets go what is not. */
    public function look(): void
    {
        $now = microtime(true);
        foreach ($this->workers as $worker) {
            if ($worker->execution?->deadline <= $now && $worker->execution !== null) {
                $execution = $worker->execution;
                $worker->execution = null;
                $this->end($worker);
                $execution->answer(500, TIMED_OUT);
            }
        }
        if ($this->workers === [] && $this->failure === null) {
            $this->start();
        } elseif ($this->mayStart() && $this->waiting->bottom()->submitted + WAIT_S <= $now) {
            $this->start();
        }
        while (count($this->workers) > 1 && $this->idle !== [] && $this->idle[0]->idleSince + IDLE_S <= $now) {
            $this->end(array_shift($this->idle));
        }
    }

    public function start(): void
    {
        [$own, $its] = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
        $pid = pcntl_fork();
        if ($pid === 0) {
            fclose($own);
            foreach ($this->workers as $other) {
                $other->channel->close();
            }
            ($this->leave)();
            work($this->settings, new Channel($its));
        }
        fclose($its);
        if ($pid < 0) {
            // The sandbox's limit of processes: those that run will come to it.
            fclose($own);
            usleep(10_000);
            return;
        }
        $this->isStarting = true;
        $this->workers[$pid] = new Worker($pid, new Channel($own, isBlocking: false));
    }

    /** The worker has something to say, or has ended. */
    public function receive(Worker $worker): void
    {
        foreach ($worker->channel->receiveAll() as [$head, $body]) {
            if ($worker->isReady) {
                $execution = $worker->execution;
                $worker->execution = null;
                if ($head['isLast']) {
                    $this->end($worker);
                } else {
                    $this->release($worker);
                }
                $execution?->send($head['status'], $head['headers'], $body);
            } elseif ($head['failure'] !== null) {
                $this->fail($worker, $head['failure']);
                return;
            } else {
                $worker->isReady = true;
                $this->isStarting = false;
                $this->release($worker);
            }
        }
        if ($worker->channel->isClosed && isset($this->workers[$worker->pid])) {
            $this->lost($worker);
        }
    }

    private function mayStart(): bool
    {
        return !$this->waiting->isEmpty() && !$this->isStarting && count($this->workers) < MAX_WORKERS;
    }

    private function release(Worker $worker): void
    {
        if ($this->waiting->isEmpty()) {
            $worker->idleSince = microtime(true);
            $this->idle[] = $worker;
        } else {
            $this->dispatch($worker, $this->waiting->dequeue());
        }
    }

    private function dispatch(Worker $worker, Execution $execution): void
    {
        $worker->execution = $execution;
        if ($execution->seconds > 0) {
            $execution->deadline = microtime(true) + $execution->seconds;
        }
        $message = $execution->message;
        $head = [$execution->logId, $message->method, $message->target, $message->headers, $message->authorizations];
        $worker->channel->send($head, $message->body);
        $message->body = '';
    }

    /** The function cannot be loaded. */
    private function fail(Worker $worker, string $failure): void
    {
        $this->failure = $failure;
        $this->isStarting = false;
        $this->end($worker);
        while (!$this->waiting->isEmpty()) {
            $this->waiting->dequeue()->answer(503, $failure);
        }
    }

    /** The function has ended its process. */
    private function lost(Worker $worker): void
    {
        $how = $this->end($worker);
        if (!$worker->isReady) {
            $this->fail($worker, "Failed to load module: the process $how.");
        }
        $this->idle = array_values(array_filter($this->idle, fn (Worker $other) => $other !== $worker));
        $worker->execution?->answer(500, "The function's process $how.");
    }

    /** Takes note of children that have ended: workers, and what functions have started and left behind. */
    public function reap(): void
    {
        while (($pid = pcntl_waitpid(-1, $status, WNOHANG)) > 0) {
            if (isset($this->workers[$pid])) {
                $this->workers[$pid]->status = $status;
            }
        }
    }

    /** Ends a worker, with the processes that it has started, and tells how it has ended. */
    private function end(Worker $worker): string
    {
        unset($this->workers[$worker->pid]);
        $worker->channel->close();
        // The status of one that is ending by itself stays as it is.
        @posix_kill(-$worker->pid, SIGKILL) || @posix_kill($worker->pid, SIGKILL);
        if ($worker->status === null) {
            pcntl_waitpid($worker->pid, $worker->status);
        }
        return pcntl_wifexited($worker->status)
            ? 'has ended with status ' . pcntl_wexitstatus($worker->status)
            : 'was ended by signal ' . pcntl_wtermsig($worker->status);
    }
}
