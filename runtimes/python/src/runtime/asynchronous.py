"""The event loop for asynchronous functions: one for the process, as the libraries they use expect."""

import asyncio
import threading

from runtime.timeout import interrupt
from runtime.workers import Interrupted, report

# How long the loop may take to hear of a cancellation until it counts as blocked.
BLOCKED_S = 0.1


class Loop:
    """Runs awaitables on a thread of its own; the caller's thread waits for the outcome."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run_forever, name="loop", daemon=True)
        self.thread.start()

    def run_forever(self):
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
            except BaseException as error:
                # An interruption that came when the blocking code had just ended, or a callback that wanted to exit.
                if not isinstance(error, Interrupted):
                    report(error)

    def run(self, awaitable, scope, execution):
        """The awaitable's result, in the context `scope`. Ends early when `execution` is cancelled."""
        done = threading.Event()
        outcome = Outcome(done)

        def start():
            task = self.loop.create_task(wait_for(awaitable), context=scope)
            outcome.task = task
            task.add_done_callback(outcome.settle)

        def cancel():
            heard = threading.Event()

            def end():
                if outcome.task is not None:
                    outcome.task.cancel()
                heard.set()

            self.loop.call_soon_threadsafe(end)
            if not heard.wait(BLOCKED_S):
                interrupt(self.thread.ident)
            done.set()

        execution.cancel = cancel
        self.loop.call_soon_threadsafe(start)
        done.wait()
        return outcome.get()


class Outcome:
    """How a task ended, for the thread that waits."""

    def __init__(self, done):
        self.done = done
        self.task = None

    def settle(self, task):
        if not task.cancelled():
            # Asking for it marks it as seen.
            task.exception()
        self.done.set()

    def get(self):
        if self.task is None or not self.task.done():
            raise Interrupted
        return self.task.result()


async def wait_for(awaitable):
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as error:
        # The loop would end with them, and with it every other execution.
        raise RuntimeError(f"The function asked to exit: {error!r}") from error


_loop = None
_lock = threading.Lock()


def shared_loop():
    global _loop
    with _lock:
        if _loop is None:
            _loop = Loop()
        return _loop
