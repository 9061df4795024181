"""Threads that serve connections: started when they are needed, kept for the next one."""

import threading
from queue import SimpleQueue

MAX_WORKERS = 256


class Workers:
    """Calls `attend` with each submitted connection on a thread; more than `MAX_WORKERS` wait."""

    def __init__(self, attend):
        self.attend = attend
        self.queue = SimpleQueue()
        self.lock = threading.Lock()
        self.n_idle = 0
        self.n_workers = 0

    def submit(self, connection):
        with self.lock:
            if self.n_idle > 0:
                self.n_idle -= 1
            elif self.n_workers < MAX_WORKERS and self.start():
                self.n_workers += 1
        self.queue.put(connection)

    def start(self):
        try:
            threading.Thread(target=self.run, name="worker", daemon=True).start()
        except (RuntimeError, MemoryError):
            # The sandbox's limit of threads: those that run will come to it.
            return False
        return True

    def run(self):
        while True:
            connection = self.queue.get()
            try:
                self.attend(connection)
            except BaseException as error:
                # Also an interruption that came too late for the execution it was meant for.
                connection.close()
                if not isinstance(error, (OSError, Interrupted)):
                    report(error)
            del connection
            with self.lock:
                self.n_idle += 1


class Interrupted(BaseException):
    """Raised in a thread whose execution has timed out."""


def report(error):
    import sys
    import traceback

    traceback.print_exception(error, file=sys.__stderr__)
