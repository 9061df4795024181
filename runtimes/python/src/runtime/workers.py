"""Threads that serve connections: started when they are needed, kept for the next one."""

import threading
from collections import deque

MAX_WORKERS = 256
# How long a thread waits for another connection before it ends.
IDLE_S = 30


class Workers:
    """Calls `attend` with each submitted connection on a thread; more than `MAX_WORKERS` wait."""

    def __init__(self, attend):
        self.attend = attend
        self.queue = deque()
        self.arrival = threading.Condition()
        # Of all threads those that wait, or are about to take what has arrived.
        self.n_idle = 0
        self.n_workers = 0

    def submit(self, connection):
        with self.arrival:
            self.queue.append(connection)
            if self.n_idle >= len(self.queue):
                self.arrival.notify()
            elif self.n_workers < MAX_WORKERS and self.start():
                self.n_workers += 1

    def start(self):
        try:
            threading.Thread(target=self.run, name="worker", daemon=True).start()
        except (RuntimeError, MemoryError):
            # The sandbox's limit of threads: those that run will come to it.
            return False
        return True

    def run(self):
        while (connection := self.take()) is not None:
            try:
                self.attend(connection)
            except BaseException as error:
                # Also an interruption that came too late for the execution it was meant for.
                connection.close()
                if not isinstance(error, (OSError, Interrupted)):
                    report(error)
            del connection

    def take(self):
        """The next connection; None where this thread is not needed any more."""
        with self.arrival:
            self.n_idle += 1
            while not self.queue:
                if not self.arrival.wait(IDLE_S) and not self.queue:
                    self.n_idle -= 1
                    self.n_workers -= 1
                    return None
            self.n_idle -= 1
            return self.queue.popleft()


class Interrupted(BaseException):
    """Raised in a thread whose execution has timed out."""


def report(error):
    import sys
    import traceback

    traceback.print_exception(error, file=sys.__stderr__)
