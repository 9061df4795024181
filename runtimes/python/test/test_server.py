"""What the table does not reach: concurrency, loading, signals, hostile callers and functions."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, f"{HERE}/../../test")

from harness import Server  # noqa: E402

COMMAND = [sys.executable, "-S", f"{HERE}/serve.py"]
FIXTURES = f"{HERE}/fixtures"
OK = "def main(context):\n    return context.res.text('ok')\n"


@contextlib.contextmanager
def server_of(files, **env):
    with tempfile.TemporaryDirectory(prefix="function-") as directory:
        for name, text in files.items():
            os.makedirs(os.path.dirname(f"{directory}/{name}"), exist_ok=True)
            with open(f"{directory}/{name}", "w") as file:
                file.write(text)
        with Server(COMMAND, directory, **env) as server:
            yield server


class ServerTest(unittest.TestCase):
    def test_keeps_overlapping_executions_native_output_apart(self):
        with Server(COMMAND, FIXTURES, OPEN_RUNTIMES_ENTRYPOINT="tests.py") as server:
            names = ["a", "b", "c", "d"]
            threads = [
                threading.Thread(
                    target=server.fetch,
                    args=("/", {"x-action": "nativeOverlap", "x-open-runtimes-log-id": name}, name.encode()),
                )
                for name in names
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for name in names:
                first, *lines = server.read_log(f"{name}_logs.log").strip().split("\n")
                self.assertIn("Native logs detected.", first)
                self.assertEqual(lines, [f"native {name} {i}" for i in range(3)])

    def test_answers_503_and_says_why_where_the_function_cannot_be_loaded(self):
        cases = {
            "missing.py": ({}, "file missing.py does not exist"),
            "syntax.py": ({"syntax.py": "def ("}, "Syntax error in syntax.py"),
            "throws.py": ({"throws.py": "raise ValueError('at load')"}, "Failed to load module: at load"),
            "needs.py": ({"needs.py": "import absent_package"}, "Module not found: absent_package"),
            "exits.py": ({"exits.py": "raise SystemExit(1)"}, "Failed to load module"),
            "value.py": ({"value.py": "main = 1"}, "Function signature invalid"),
        }
        for entrypoint, (files, expected) in cases.items():
            with self.subTest(entrypoint), server_of(files, OPEN_RUNTIMES_ENTRYPOINT=entrypoint) as server:
                status, _, _ = server.fetch("/", {"x-open-runtimes-log-id": "load"})
                self.assertEqual(status, 503)
                self.assertIn(expected, server.read_log("load_errors.log"))

    def test_finds_siblings_and_the_packages_of_the_environment(self):
        site = f"runtime-env/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        files = {
            "deep/app.py": "from .part import text\nimport installed, linked\n"
            "def main(context):\n    return context.res.text(text + installed.text + linked.text)\n",
            "deep/part.py": "text = 'a'",
            f"{site}/installed.py": "text = 'b'",
            f"{site}/more.pth": "elsewhere\n",
            f"{site}/elsewhere/linked.py": "text = 'c'",
        }
        with server_of(files, OPEN_RUNTIMES_ENTRYPOINT="deep/app.py") as server:
            self.assertEqual(server.fetch()[2], b"abc")

    def test_finishes_what_is_under_way_before_it_ends_on_sigterm(self):
        slow = "import time\ndef main(context):\n    time.sleep(0.4)\n    return context.res.text('done')\n"
        with server_of({"main.py": slow}) as server:
            answers = []
            thread = threading.Thread(target=lambda: answers.append(server.fetch()[2]))
            thread.start()
            time.sleep(0.15)
            server.process.send_signal(signal.SIGTERM)
            thread.join()
            self.assertEqual(answers, [b"done"])
            self.assertEqual(server.process.wait(5), 0)

    def test_ends_at_once_on_sigterm_when_nothing_runs(self):
        with server_of({"main.py": OK}) as server:
            server.fetch("/", {"x-open-runtimes-timeout": "5"})
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(5), 0)
            self.assertLess(time.monotonic() - began, 0.5)

    def test_a_blocked_function_does_not_keep_others_from_running(self):
        spin = (
            "def main(context):\n    while context.req.path == '/spin': pass\n    return context.res.text('ok')\n"
        )
        with server_of({"main.py": spin}) as server:
            spinning = threading.Thread(target=server.fetch, args=("/spin", {"x-open-runtimes-timeout": "1"}))
            spinning.start()
            time.sleep(0.1)
            self.assertEqual(server.fetch("/__opr/health")[2], b"OK")
            self.assertEqual(server.fetch("/")[2], b"ok")
            spinning.join()

    def test_an_interrupted_function_ends(self):
        spin = (
            "n = 0\ndef main(context):\n    global n\n"
            "    if context.req.path == '/n': return context.res.text(str(n))\n"
            "    while True:\n        n += 1\n"
        )
        with server_of({"main.py": spin}) as server:
            for _ in range(3):
                self.assertEqual(server.fetch("/", {"x-open-runtimes-timeout": "1"})[0], 500)
            time.sleep(0.2)
            before = server.fetch("/n")[2]
            time.sleep(0.2)
            self.assertEqual(server.fetch("/n")[2], before)

    def test_answers_once_and_in_whole_where_the_function_ends_at_its_deadline(self):
        punctual = (
            "import time\ndef main(context):\n    time.sleep(float(context.req.query['s']))\n"
            "    return context.res.text('x' * 100000)\n"
        )
        with server_of({"main.py": punctual}) as server:
            answers = []

            def speak(seconds):
                head = f"GET /?s={seconds} HTTP/1.1\r\nx-open-runtimes-timeout: 1\r\n\r\n"
                answers.append(server.speak(head.encode(), quiet=2.5))

            threads = [threading.Thread(target=speak, args=(0.98 + i / 1000,)) for i in range(40)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for answer in answers:
                head, _, body = answer.partition(b"\r\n\r\n")
                if head.startswith(b"HTTP/1.1 200 "):
                    self.assertEqual(len(body), 100_000)
                else:
                    self.assertRegex(head, rb"^HTTP/1.1 500 ")
                    self.assertEqual(body, b"")
            self.assertEqual(len(answers), 40)
            self.assertEqual(server.fetch("/?s=0")[0], 200)

    def test_serves_more_than_it_has_threads_and_lets_them_end(self):
        slow = "import time\ndef main(context):\n    time.sleep(0.3)\n    return context.res.text('ok')\n"
        with server_of({"main.py": slow}, TEST_IDLE_S="0.3") as server:
            answers = []
            threads = [threading.Thread(target=lambda: answers.append(server.fetch()[2])) for _ in range(300)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(answers, [b"ok"] * 300)
            time.sleep(1)
            self.assertLess(len(os.listdir(f"/proc/{server.process.pid}/task")), 5)
            self.assertEqual(server.fetch()[2], b"ok")

    def test_answers_where_logs_cannot_be_written(self):
        logs = "def main(context):\n    context.log('x')\n    return context.res.text('ok')\n"
        with server_of({"main.py": logs}) as server:
            os.rmdir(f"{server.state}/logs")
            self.assertEqual(server.fetch()[2], b"ok")

    def test_bounds_the_log_of_one_execution(self):
        flood = (
            "def main(context):\n    for _ in range(2000): context.log('x' * 7999)\n    return context.res.empty()\n"
        )
        with server_of({"main.py": flood}) as server:
            server.fetch("/", {"x-open-runtimes-log-id": "flood"})
            size = os.path.getsize(f"{server.state}/logs/flood_logs.log")
            self.assertTrue(5 << 20 < size < 6 << 20, size)

    def test_uses_as_many_processes_as_it_has_processors(self):
        pid = "import os\ndef main(context):\n    return context.res.text(str(os.getpid()))\n"
        with server_of({"main.py": pid}, OPEN_RUNTIMES_CPUS="1.5") as server:
            pids = {server.fetch()[2] for _ in range(60)}
            children = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True).stdout.split()
            self.assertEqual(len(children), 1)
            self.assertLessEqual(pids, {str(server.process.pid).encode(), children[0].encode()})
            # One of them ends: the whole ends with a failure.
            os.kill(int(children[0]), signal.SIGKILL)
            self.assertEqual(server.process.wait(5), 1)

    def test_notes_its_start_where_the_lifecycle_asks_for_it(self):
        with server_of({"main.py": OK}, OPEN_RUNTIMES_STARTUP_BEGAN=str(time.time())) as server:
            self.assertRegex(server.fetch("/__opr/timings")[2].decode(), r"startup=\d+\.\d{3}\n")


class HttpTest(unittest.TestCase):
    """The parser, as a hostile or careless caller meets it."""

    @classmethod
    def setUpClass(cls):
        echo = (
            "def main(context):\n    r = context.req\n"
            "    return context.res.text(f'[{r.host}]{r.port}{r.url} {r.body_text} {r.headers.get(\"authorization\")}')\n"
        )
        cls.stack = contextlib.ExitStack()
        cls.server = cls.stack.enter_context(server_of({"main.py": echo}, OPEN_RUNTIMES_SECRET="s"))

    @classmethod
    def tearDownClass(cls):
        cls.stack.close()

    def check(self, head, expected, body=b""):
        text = head.replace("\n", "\r\n").encode("latin-1") + b"\r\n" + body
        answer = self.server.speak(text.replace(b"SECRET", b"x-open-runtimes-secret: s"))
        self.assertRegex(answer.decode("latin-1"), expected)

    def test_understands(self):
        self.check("GET /a?b HTTP/1.1\nSECRET\n", r"200 [\s\S]*\[\]80http:///a\?b  None$")
        self.check("GET http://h/a HTTP/1.1\nhost: h:81\nSECRET\n", r"\[h\]81http://h:81/a  None$")
        self.check("GET / HTTP/1.1\nhost: [::1]:3000\nSECRET\n", r"\[\[::1\]\]3000http://\[::1\]:3000/")
        self.check("POST / HTTP/1.1\nSECRET\ntransfer-encoding: chunked\n", r"/ hello None$", b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nt: r\r\n\r\n")
        self.check("POST / HTTP/1.1\nSECRET\nexpect: 100-continue\ncontent-length: 2\n", r"^HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200[\s\S]*hi None$", b"hi")
        self.check("GET / HTTP/1.0\nSECRET\n", r"200 OK[\s\S]*connection: close")

    def test_answers_requests_one_after_another(self):
        one = "GET /1 HTTP/1.1\nSECRET\n\nPOST /2 HTTP/1.1\nSECRET\ncontent-length: 1\n\nxGET /3 HTTP/1.1\nSECRET\n"
        self.check(one, r"/1 [\s\S]*/2 x[\s\S]*/3 ")

    def test_reads_over_the_body_of_a_refused_request(self):
        self.check("POST / HTTP/1.1\ncontent-length: 3\n\nabcGET /next HTTP/1.1\nSECRET\n", r"^HTTP/1.1 401 [\s\S]*200 OK[\s\S]*/next")

    def test_refuses_what_two_readers_could_understand_differently(self):
        for head in (
            "GET / HTTP/1.1\ncontent-length: 1\ntransfer-encoding: chunked\n",
            "GET / HTTP/1.1\ntransfer-encoding: gzip, chunked\n",
            "GET / HTTP/1.1\ncontent-length: 1\ncontent-length: 2\n",
            "GET / HTTP/1.1\ncontent-length: +1\n",
            "GET / HTTP/1.1\nx : y\n",
            "GET / HTTP/1.1\n folded\n",
            "GET /\n",
            "GET / HTTP/2.0\n",
            "G\x01T / HTTP/1.1\n",
        ):
            with self.subTest(head):
                self.check(head, r"^HTTP/1.1 400 ")
        self.check("POST / HTTP/1.1\nSECRET\ntransfer-encoding: chunked\n", r"^HTTP/1.1 400 ", b"-1\r\n")
        self.check("GET / HTTP/1.1\nx: " + "y" * 200_000 + "\n", r"^HTTP/1.1 431 ")

    def test_refuses_an_announced_large_body_without_asking_for_it(self):
        self.check("POST / HTTP/1.1\nSECRET\nexpect: 100-continue\ncontent-length: 30000000\n", r"^HTTP/1.1 413 ")

    def test_keeps_the_clients_authorization_beside_the_callers_own(self):
        own = "authorization: Basic b3ByOnM=\n"
        self.check(f"GET / HTTP/1.1\nSECRET\n{own}", r"None$")
        self.check(f"GET / HTTP/1.1\nSECRET\n{own}authorization: Bearer t\n", r"Bearer t$")


if __name__ == "__main__":
    unittest.main()
