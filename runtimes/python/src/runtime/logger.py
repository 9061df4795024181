"""The two log files of an execution. They are written when there is something to write, at the latest before the response
leaves, so that a silent function costs no file; failing to write them never fails the execution."""

import os
import time

RUNTIME_DIR = os.path.dirname(os.path.abspath(__file__)) + os.sep
RECORD_LIMIT = 8_000
TRUNCATED = f"... Log truncated due to size limit ({RECORD_LIMIT} characters)"
NATIVE_NOTICE = "Native logs detected. Use context.log() or context.error() for better experience.\n"
BUFFER_LIMIT = 64 * 1024
# Callers read 5 MiB of a file and say so when there is more: what lies further back would only fill the disk.
FILE_LIMIT = 5 * 1024 * 1024 + 64 * 1024
ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
ID_LIMIT = 128


class LogFile:
    """Buffered text of one log file."""

    def __init__(self, path):
        self.path = path
        self.parts = []
        self.size = 0
        self.room = FILE_LIMIT

    def write(self, text):
        if self.room <= 0:
            return
        self.parts.append(text)
        self.size += len(text)
        if self.size > BUFFER_LIMIT:
            self.flush()

    def flush(self):
        if not self.parts:
            return
        parts, self.parts, self.size = self.parts, [], 0
        data = "".join(parts).encode("utf-8", "backslashreplace")
        data = data[: max(0, self.room)]
        self.room -= len(data)
        try:
            with open(self.path, "ab", buffering=0) as file:
                file.write(data)
        except (OSError, ValueError):
            self.room = 0


class Logger:
    """The log of one execution; after `close` nothing is written any more."""

    def __init__(self, directory, name):
        self.id = name
        self.is_open = True
        self.is_native = False
        self.ends_line = True
        self.logs = LogFile(f"{directory}/{name}_logs.log")
        self.errors = LogFile(f"{directory}/{name}_errors.log")

    def log(self, *messages):
        if self.is_open:
            self.end_line()
            self.logs.write(record(messages))

    def error(self, *messages):
        if self.is_open:
            self.errors.write(record(messages))

    def exception(self, error):
        """A failure nobody caught: its stack, which names the message and the file."""
        if self.is_open:
            self.errors.write(record((describe(error),)))

    def native(self, text):
        """What the function printed by other means than its context."""
        if not text:
            return
        if not self.is_native:
            self.is_native = True
            self.logs.write(NATIVE_NOTICE)
        self.logs.write(text)
        self.ends_line = text.endswith("\n")

    def end_line(self):
        if not self.ends_line:
            self.logs.write("\n")
            self.ends_line = True

    def flush(self):
        self.end_line()
        self.logs.flush()
        self.errors.flush()

    def close(self):
        self.is_open = False
        self.flush()


class NoLog:
    """The log of an execution whose caller wants none."""

    id = ""
    is_open = True

    def log(self, *messages):
        pass

    error = exception = native = flush = close = log


NO_LOG = NoLog()


def log_id(headers, is_development):
    """The id asked for where it is a safe file name, else one of the runtime's own; empty where logging is off."""
    if (headers.get("x-open-runtimes-logging") or "enabled") != "enabled":
        return ""
    wanted = headers.get("x-open-runtimes-log-id")
    if wanted and len(wanted) <= ID_LIMIT and wanted[0] != "." and ID_CHARACTERS.issuperset(wanted):
        return wanted
    return "dev" if is_development and not wanted else generate_id()


def generate_id():
    """Seconds (8 hex digits), fraction of a second (5), random (7)."""
    now = time.time()
    return f"{int(now):08x}{int(now % 1 * 1_000_000):05x}{os.urandom(4).hex()[:7]}"


def record(messages):
    text = messages[0] if len(messages) == 1 and isinstance(messages[0], str) else " ".join(map(to_text, messages))
    if len(text) > RECORD_LIMIT:
        text = text[:RECORD_LIMIT] + TRUNCATED
    return text + "\n"


def to_text(value):
    if isinstance(value, str):
        return value
    try:
        if isinstance(value, BaseException):
            return describe(value)
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            import json

            return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=plain)
        return str(value)
    except Exception:
        return object.__repr__(value)


def plain(value):
    """Gives JSON what it has no form for."""
    return list(value) if isinstance(value, (set, frozenset)) else str(value)


def describe(error):
    """The traceback from the function's first frame on, which names its file."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(RUNTIME_DIR):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip("\n")
