"""The safe timeout: a watchdog thread answers for an execution that takes too long, whatever that one is busy with, and
raises an exception in its thread.

Starting and stopping an execution's clock wakes nobody: the watchdog sleeps until the first deadline it knows of, and is
woken only for an earlier one."""

import threading
import time

from runtime.workers import Interrupted, report

TIMED_OUT = "Execution timed out."
# How long until a function that goes on is interrupted again.
AGAIN_S = 1.0


class Timeouts:
    """The deadlines of this process."""

    def __init__(self):
        self.deadlines = {}
        self.next_look = 0.0
        self.thread = None
        self.wake = threading.Condition()

    def start(self, execution, seconds):
        """From now on `execution.expire` is called after `seconds`, and again until `stop`."""
        deadline = time.monotonic() + seconds
        self.deadlines[execution] = deadline
        if self.thread is None:
            self.watch()
        elif deadline < self.next_look:
            with self.wake:
                self.wake.notify()

    def stop(self, execution):
        self.deadlines.pop(execution, None)

    def watch(self):
        """Starts the watchdog: with the first execution that has a deadline."""
        with self.wake:
            if self.thread is None:
                self.thread = threading.Thread(target=self.run, name="watchdog", daemon=True)
                self.thread.start()

    def run(self):
        while True:
            with self.wake:
                # Until the new value is there, whoever starts a clock waits for the lock and then wakes this thread.
                self.next_look = float("inf")
                earliest = min(list(self.deadlines.values()), default=None)
                if earliest is None:
                    self.wake.wait()
                elif earliest > time.monotonic():
                    self.next_look = earliest
                    self.wake.wait(earliest - time.monotonic())
            now = time.monotonic()
            overdue = [execution for execution, deadline in list(self.deadlines.items()) if deadline <= now]
            for execution in overdue:
                execution.interrupt()
            for execution in overdue:
                self.expire(execution, now + AGAIN_S)

    def expire(self, execution, again_at):
        if execution in self.deadlines:
            self.deadlines[execution] = again_at
        try:
            execution.expire()
        except Exception as error:
            report(error)


def interrupt(thread_id):
    """Raises `Interrupted` in a thread, as soon as that runs Python code."""
    set_exception(thread_id, Interrupted)


def forgive(thread_id):
    """Takes back an interruption that has not been raised."""
    set_exception(thread_id, None)


def set_exception(thread_id, exception):
    import ctypes

    argument = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), argument)
