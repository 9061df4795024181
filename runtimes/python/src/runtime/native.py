"""What a function prints goes to the log of the execution it was printed in."""

import contextvars
import sys

# The execution that the running code belongs to.
current = contextvars.ContextVar("execution", default=None)


class Captured:
    """Stands for `sys.stdout` or `sys.stderr`; outside an execution it is that stream."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        execution = current.get()
        if execution is not None and execution.logger.is_open:
            if not isinstance(text, str):
                raise TypeError(f"write() argument must be str, not {type(text).__name__}")
            execution.logger.native(text)
            return len(text)
        return self._stream.write(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __iter__(self):
        return iter(self._stream)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def capture_output():
    """Redirects both streams, for good; lines leave at once, since a pipe reads them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
            setattr(sys, name, Captured(stream))
