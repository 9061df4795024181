"""One request from its first line to its answer, in the protocol's order:
special paths, authentication, timeout, log, body, function, response."""

import contextvars
import threading

from runtime.http import BodyTooLarge, encode_head
from runtime.logger import NO_LOG, Logger, log_id
from runtime.native import current
from runtime.request import Request, is_equal_secret
from runtime.response import FunctionResponse, render
from runtime.timeout import TIMED_OUT, Timeouts, forgive, interrupt
from runtime.workers import Interrupted

MAX_TIMEOUT_S = 2_147_483

UNAUTHORIZED = 'Unauthorized. Provide correct "x-open-runtimes-secret" header.'
BAD_TIMEOUT = 'Header "x-open-runtimes-timeout" must be an integer greater than 0.'
NO_RETURN = "Return statement missing. return context.res.empty() if no response is expected."
PLAIN = ("content-type", "text/plain; charset=utf-8")


class Context:
    """What a function is called with."""

    __slots__ = ("req", "res", "log", "error")


class Executions:
    """All executions of this process."""

    def __init__(self, settings):
        self.settings = settings
        self.timeouts = Timeouts()
        self.active = set()
        self.function = None

    def handle(self, message, connection):
        path = message.target.partition("?")[0]
        if path == "/__opr/health":
            return answer(message, connection, 200, b"OK")
        if path == "/__opr/timings":
            return answer(message, connection, 200, self.timings())

        secret = self.settings.secret
        if secret and not is_equal_secret(message.headers.get("x-open-runtimes-secret", ""), secret):
            return answer(message, connection, 401, UNAUTHORIZED.encode())
        seconds = parse_timeout(message.headers.get("x-open-runtimes-timeout"))
        if seconds is None:
            return answer(message, connection, 500, BAD_TIMEOUT.encode())

        execution = Execution(self, message, connection, seconds)
        self.active.add(execution)
        try:
            execution.run()
        finally:
            self.active.discard(execution)
            execution.end()

    def timings(self):
        try:
            with open(self.settings.timings_file, "rb") as file:
                return file.read()
        except OSError:
            return b""

    def flush(self):
        """Saves what executions have logged so far: the process ends."""
        for execution in list(self.active):
            execution.logger.flush()


class Execution:
    """One execution; it is answered exactly once, by its own thread or, when it times out, by the watchdog's."""

    def __init__(self, executions, message, connection, seconds):
        self.executions = executions
        self.message = message
        self.connection = connection
        self.seconds = seconds
        self.lock = threading.Lock()
        self.is_answered = False
        self.is_expired = False
        self.is_over = False
        self.thread_id = threading.get_ident()
        # Ends an asynchronous function, once there is one.
        self.cancel = None
        settings = executions.settings
        name = log_id(message.headers, settings.is_development)
        self.logger = Logger(settings.logs_dir, name) if name else NO_LOG

    def run(self):
        try:
            body = self.connection.read_body(self.message)
        except BodyTooLarge:
            return self.respond(413, [], b"")
        function = self.executions.function
        if function.failure is not None:
            self.logger.error(function.failure)
            return self.respond(503, [], b"")
        try:
            output = self.call(function, body)
            if output is None:
                self.logger.error(NO_RETURN)
                return self.respond(500, [], b"")
            self.respond(*render(output))
        except BaseException as error:
            self.fail(error)

    def call(self, function, body):
        context = Context()
        context.req = Request(self.message, body, self.executions.settings)
        context.res = FunctionResponse()
        context.log = self.logger.log
        context.error = self.logger.error
        scope = contextvars.copy_context()
        scope.run(current.set, self)
        timeouts = self.executions.timeouts
        if self.seconds:
            timeouts.start(self, self.seconds)
        try:
            output = scope.run(function.main, context)
            if hasattr(output, "__await__"):
                output = function.loop().run(output, scope, self)
            return output
        finally:
            if self.seconds:
                timeouts.stop(self)

    def interrupt(self):
        """The watchdog, first: tries to end the function. That is quick, and frees the interpreter for the answers."""
        if self.is_answered and not self.is_expired:
            return
        with self.lock:
            if self.is_over or (self.is_answered and not self.is_expired):
                return
            self.is_expired = True
            if self.cancel is None:
                interrupt(self.thread_id)

    def expire(self):
        """The watchdog, second: answers, where the function's thread has not come to it."""
        if not self.is_expired or self.is_over:
            return
        if not self.is_answered and self.respond(500, [], b"", error=TIMED_OUT):
            self.message.keeps_alive = False
            self.connection.cut()
        if self.cancel is not None:
            self.cancel()

    def fail(self, error):
        if isinstance(error, Interrupted):
            return self.respond(500, [], b"", error=TIMED_OUT)
        self.logger.exception(error)
        self.respond(500, [], b"")

    def respond(self, status, headers, body, error=None):
        """Sends the answer and is true, unless there has been one; `error` is logged with it."""
        is_own = threading.get_ident() == self.thread_id
        if not any(name == "content-type" for name, _ in headers):
            headers.append(PLAIN)
        headers.append(("x-open-runtimes-log-id", self.logger.id))
        if status not in (204, 304):
            headers.append(("content-length", str(len(body))))
        if not (is_own and self.message.keeps_alive):
            headers.append(("connection", "close"))
        # Raises for a header that cannot be sent: nothing has left yet.
        head = encode_head(status, headers)
        has_body = status not in (204, 304) and self.message.method != "HEAD"
        with self.lock:
            if is_own:
                # Interruptions are made under this lock: from here on none can come between claim and answer.
                self.is_over = True
                if self.is_expired:
                    forgive(self.thread_id)
            if self.is_answered:
                return False
            self.is_answered = True
            if error is not None:
                self.logger.error(error)
            self.logger.close()
            # Under the lock as well, since a thread that finds itself answered goes on to end the connection.
            self.connection.transmit(head + body if has_body else head)
        return True

    def end(self):
        """After this the thread belongs to the next execution."""
        with self.lock:
            self.is_over = True
        if self.is_expired:
            forgive(self.thread_id)


def parse_timeout(text):
    """Whole seconds; 0 where none are asked for; None where the text is no positive integer."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        return None
    seconds = min(int(text[:20]), MAX_TIMEOUT_S)
    return seconds if seconds > 0 else None


def answer(message, connection, status, body):
    """An answer of the runtime itself, outside any execution."""
    headers = [PLAIN, ("content-length", str(len(body)))]
    head = encode_head(status, headers)
    connection.transmit(head if message.method == "HEAD" else head + body)
