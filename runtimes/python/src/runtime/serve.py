"""Owns the listening socket, the signals and the life of the process; what a request means is `execution`'s matter."""

import os
import select
import signal
import socket
import sys
import time

from runtime.execution import Executions
from runtime.http import Connection
from runtime.loader import load, prepare_path
from runtime.native import capture_output
from runtime.workers import Workers

BACKLOG = 4096
# How long a stopping server waits for executions that are under way.
DRAIN_S = 5.0


def serve(settings):
    """Binds, announces readiness, loads the function, and serves until a signal."""
    # As PID 1 a signal without a handler is ignored; until there is something to finish, one ends the process at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    try:
        listener = bind(settings.port)
    except OSError as error:
        sys.exit(f"HTTP server failed: {error}")
    print_line(b"HTTP server successfully started!\n")
    note_startup(settings)
    executions = Executions(settings)
    capture_output()
    prepare_path(settings.code_dir)
    executions.function = load(settings.code_dir, settings.entrypoint)
    Server(listener, executions, Family(settings.n_processes)).run()


def bind(port):
    """All interfaces, both families where there are both."""
    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        host = "::"
    except OSError:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        host = "0.0.0.0"
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it: an answer leaves at once.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError:
        if host == "0.0.0.0":
            raise
        listener.close()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(("0.0.0.0", port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def print_line(line):
    """Writes to the process's own output; a reader that is gone is no reason to fail."""
    try:
        os.write(1, line)
    except OSError:
        pass


def note_startup(settings):
    """The `startup` metric, where the start lifecycle told when it began."""
    if settings.startup_began is None:
        return
    try:
        with open(settings.timings_file, "a") as timings:
            timings.write(f"startup={time.time() - settings.startup_began:.3f}\n")
    except OSError:
        pass


class Family:
    """The processes that share the listening socket. They live and die together."""

    def __init__(self, n_processes):
        self.children = []
        self.parent_pipe = None
        reader, writer = os.pipe() if n_processes > 1 else (None, None)
        for _ in range(n_processes - 1):
            pid = os.fork()
            if pid == 0:
                self.children = []
                self.parent_pipe = reader
                os.close(writer)
                return
            self.children.append(pid)
        if reader is not None:
            os.close(reader)

    def check(self):
        """Ends this process where a child has ended: half a server is none."""
        for pid in self.children:
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                print_line(b"A server process has ended.\n")
                self.kill(signal.SIGKILL)
                os._exit(1)

    def kill(self, number):
        for pid in self.children:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass


class Server:
    """The loop of the main thread: accepts, and watches the connections that are idle."""

    def __init__(self, listener, executions, family):
        self.listener = listener
        self.executions = executions
        self.family = family
        self.idle = {}
        self.epoll = select.epoll()
        self.workers = Workers(self.attend)
        self.drain_until = None
        # A signal alone does not end the wait: the interpreter resumes it.
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)

    def run(self):
        signal.signal(signal.SIGTERM, self.on_stop)
        signal.signal(signal.SIGINT, self.on_stop)
        if self.family.children:
            signal.signal(signal.SIGCHLD, lambda *_: self.family.check())
            self.family.check()
        if self.family.parent_pipe is not None:
            self.epoll.register(self.family.parent_pipe, select.EPOLLHUP)
        self.epoll.register(self.wake, select.EPOLLIN)
        self.epoll.register(self.listener.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
        while True:
            for fd, _ in self.epoll.poll(None if self.drain_until is None else 0.01):
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == self.family.parent_pipe:
                    os._exit(1)
                elif fd == self.wake:
                    os.eventfd_read(self.wake)
                else:
                    connection = self.idle.pop(fd, None)
                    if connection is not None:
                        self.epoll.unregister(fd)
                        self.workers.submit(connection)
            if self.drain_until is not None and (not self.executions.active or time.monotonic() > self.drain_until):
                self.exit()

    def accept(self):
        # Many at a time, but not for ever: an idle connection may have spoken meanwhile.
        for _ in range(64):
            try:
                accepted, _ = self.listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # Out of descriptors or memory: let others finish.
                time.sleep(0.01)
                return
            self.workers.submit(Connection(accepted))

    def attend(self, connection):
        """Serves one connection, on a worker's thread, until it falls idle."""
        if connection.serve(self.executions.handle):
            fd = connection.fileno()
            self.idle[fd] = connection
            try:
                self.epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
            except (OSError, ValueError):
                self.idle.pop(fd, None)
                connection.close()

    def on_stop(self, *_):
        if not self.executions.active:
            self.exit()
        self.drain_until = time.monotonic() + DRAIN_S
        os.eventfd_write(self.wake, 1)
        self.family.kill(signal.SIGTERM)

    def exit(self):
        self.family.kill(signal.SIGTERM)
        self.executions.flush()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass
        os._exit(0)
