"""A language's server as a process with state of its own, for tests."""

import glob
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from urllib import error, request


RUNTIMES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Language:
    """How to start a language's server with the paths of a test: `test/serve.*` of its folder."""

    def __init__(self, name, program, extension, parts=()):
        self.name = name
        self.program = program
        self.extension = extension
        # Folders whose sources its image takes too.
        self.parts = parts

    def is_installed(self):
        return shutil.which(self.program[0]) is not None

    def fixtures(self):
        return f"{RUNTIMES}/{self.name}/test/fixtures"

    def command(self, tree):
        """The command; what it needs is put into the empty folder `tree`, where that is more than the language's own."""
        folder = f"{RUNTIMES}/{self.name}"
        if self.parts:
            for part in (*self.parts, self.name):
                shutil.copytree(f"{RUNTIMES}/{part}/src", f"{tree}/src", dirs_exist_ok=True)
            shutil.copytree(f"{folder}/test", f"{tree}/test")
            for manifest in glob.glob(f"{folder}/*.json"):
                shutil.copy(manifest, tree)
            folder = tree
        return [*self.program, f"{folder}/test/serve.{self.extension}"]


PYTHON = Language("python", ["python3", "-S"], "py")
PHP = Language("php", ["php"], "php")
RUBY = Language("ruby", ["ruby", "--disable=gems"], "rb")
BUN = Language("bun", ["bun"], "ts", ("node", "javascript"))
DENO = Language("deno", ["deno", "run", "--allow-all", "--quiet"], "ts", ("node", "javascript"))


class Server:
    """Started and listening when made, with a copy of the function in `code_dir`; a context manager.

    `command` gets three arguments more: the port, the function's folder, and the folder of logs and timings."""

    def __init__(self, command, code_dir, **env):
        self.state = tempfile.mkdtemp(prefix="runtime-")
        os.mkdir(f"{self.state}/logs")
        os.mkdir(f"{self.state}/telemetry")
        with open(f"{self.state}/telemetry/timings.txt", "w") as timings:
            timings.write("local_download=0.200\nremote_download=10.560\n")
        self.port = free_port()
        # Python's imports the function as a module of the package that its directory is.
        self.code_dir = f"{self.state}/src/function"
        shutil.copytree(code_dir, self.code_dir)
        self.process = subprocess.Popen(
            [*command, str(self.port), self.code_dir, self.state],
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.output = []
        started = threading.Event()
        self.reader = threading.Thread(target=self.read, args=(started,), daemon=True)
        self.reader.start()
        if not started.wait(10):
            self.__exit__()
            raise RuntimeError(f"not started: {self.text_output()}")

    def read(self, started):
        for line in self.process.stdout:
            self.output.append(line.decode())
            if b"HTTP server successfully started!" in line:
                started.set()

    def text_output(self):
        return "".join(self.output)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        shutil.rmtree(self.state, ignore_errors=True)

    def fetch(self, path="/", headers=None, body=None, method=None):
        """`(status, headers, body)`"""
        wanted = request.Request(f"http://127.0.0.1:{self.port}{path}", data=body, headers=headers or {}, method=method)
        try:
            with request.urlopen(wanted, timeout=10) as answer:
                return answer.status, answer.headers, answer.read()
        except error.HTTPError as answer:
            with answer:
                return answer.code, answer.headers, answer.read()

    def speak(self, data, quiet=0.3):
        """All that comes back on one connection for `data`, until the other side ends it or falls quiet."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(data)
            connection.settimeout(quiet)
            answer = b""
            try:
                while chunk := connection.recv(65536):
                    answer += chunk
            except (TimeoutError, ConnectionResetError):
                pass
            return answer

    def read_log(self, name):
        try:
            with open(f"{self.state}/logs/{name}", encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def log_files(self):
        return os.listdir(f"{self.state}/logs")

    def clear_logs(self):
        for name in self.log_files():
            os.unlink(f"{self.state}/logs/{name}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
