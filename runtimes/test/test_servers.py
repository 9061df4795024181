"""What the table does not reach, for the servers that have no tests in their own language: concurrency, loading, signals,
hostile callers."""

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import harness


class ServerTests:
    """Every server's; a language's own class says how its functions are written."""

    language = None
    # The entrypoint, then functions: answers `ok`; answers `done` after 0.4 s; answers `met` when eight of it have come to the
    # folder MEETING; logs 2,000 long lines; answers the authorization it was sent.
    entrypoint = ok = slow = meet = flood = echo = None
    # Entrypoint, its text where there is such a file, what the error log says.
    unloadable = ()

    def setUp(self):
        if not self.language.is_installed():
            self.skipTest(f"{self.language.name} is not installed; its image is tested on a node")
        folder = tempfile.TemporaryDirectory(prefix="server-")
        self.addCleanup(folder.cleanup)
        self.command = self.language.command(f"{folder.name}/tree")

    def serve(self, text, entrypoint=None, **env):
        entrypoint = entrypoint or self.entrypoint
        with tempfile.TemporaryDirectory(prefix="function-") as folder:
            if text is not None:
                with open(f"{folder}/{entrypoint}", "w") as file:
                    file.write(text)
            server = harness.Server(self.command, folder, OPEN_RUNTIMES_ENTRYPOINT=entrypoint, **env)
        self.addCleanup(server.__exit__)
        return server

    def test_keeps_overlapping_executions_native_output_apart(self):
        entrypoint = f"tests.{self.language.extension}"
        server = harness.Server(self.command, self.language.fixtures(), OPEN_RUNTIMES_ENTRYPOINT=entrypoint)
        self.addCleanup(server.__exit__)
        names = ["a", "b", "c", "d"]
        ask = lambda name: server.fetch("/", {"x-action": "nativeOverlap", "x-open-runtimes-log-id": name}, name.encode())
        run_all([lambda name=name: ask(name) for name in names])
        for name in names:
            first, *lines = server.read_log(f"{name}_logs.log").strip().split("\n")
            self.assertIn("Native logs detected.", first)
            self.assertEqual(lines, [f"native {name} {i}" for i in range(3)])

    def test_answers_503_and_says_why_where_the_function_cannot_be_loaded(self):
        for entrypoint, text, expected in self.unloadable:
            with self.subTest(entrypoint):
                server = self.serve(text, entrypoint)
                for _ in range(2):
                    self.assertEqual(server.fetch("/", {"x-open-runtimes-log-id": "load"})[0], 503)
                    self.assertIn(expected, server.read_log("load_errors.log"))

    def test_runs_executions_at_once(self):
        with tempfile.TemporaryDirectory(prefix="meeting-") as folder:
            server = self.serve(self.meet, MEETING=folder)
            answers = []
            run_all([lambda: answers.append(server.fetch("/", {"x-open-runtimes-timeout": "8"})[2])] * 8)
            self.assertEqual(answers, [b"met"] * 8)

    def test_finishes_what_is_under_way_before_it_ends_on_sigterm(self):
        server = self.serve(self.slow)
        server.fetch()
        answers = []
        thread = threading.Thread(target=lambda: answers.append(server.fetch()[2]))
        thread.start()
        time.sleep(0.15)
        server.process.send_signal(signal.SIGTERM)
        thread.join()
        self.assertEqual(answers, [b"done"])
        self.assertEqual(server.process.wait(8), 0)

    def test_ends_on_sigterm_when_nothing_runs(self):
        server = self.serve(self.ok)
        server.fetch("/", {"x-open-runtimes-timeout": "5"})
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(4), 0)

    def test_ends_with_a_failure_where_the_port_is_taken(self):
        server = self.serve(self.ok)
        other = [*self.command, str(server.port), server.code_dir, server.state]
        outcome = subprocess.run(other, env={"PATH": os.environ["PATH"]}, capture_output=True, timeout=10)
        self.assertEqual(outcome.returncode, 1)
        self.assertIn(b"HTTP server failed", outcome.stderr)

    def test_answers_where_logs_cannot_be_written(self):
        server = self.serve(self.flood)
        os.rmdir(f"{server.state}/logs")
        self.assertEqual(server.fetch()[2], b"ok")

    def test_bounds_the_log_of_one_execution(self):
        server = self.serve(self.flood)
        server.fetch("/", {"x-open-runtimes-log-id": "flood"})
        size = os.path.getsize(f"{server.state}/logs/flood_logs.log")
        self.assertTrue(5 << 20 < size < 6 << 20, size)

    def test_notes_its_start_where_the_lifecycle_asks_for_it(self):
        server = self.serve(self.ok, OPEN_RUNTIMES_STARTUP_BEGAN=str(time.time()))
        self.assertRegex(server.fetch("/__opr/timings")[2].decode(), r"startup=\d+\.\d{3}\n")

    def test_keeps_the_clients_authorization_beside_the_callers_own(self):
        server = self.serve(self.echo, OPEN_RUNTIMES_SECRET="s")
        own = "authorization: Basic b3ByOnM=\r\n"
        for lines, expected in ((own, r"\[\]$"), (f"{own}authorization: Bearer t\r\n", r"\[Bearer t\]$")):
            head = f"GET / HTTP/1.1\r\nhost: x\r\nx-open-runtimes-secret: s\r\nconnection: close\r\n{lines}\r\n"
            self.assertRegex(server.speak(head.encode(), quiet=2).decode(), expected)

    def test_refuses_what_two_readers_could_understand_differently(self):
        server = self.serve(self.ok)
        for head in (
            "POST / HTTP/1.1\nhost: x\ncontent-length: 1\ncontent-length: 2\n",
            "POST / HTTP/1.1\nhost: x\ncontent-length: +1\n",
            "GET / HTTP/1.1\nhost: x\nx : y\n",
            "G\x01T / HTTP/1.1\nhost: x\n",
        ):
            with self.subTest(head):
                answer = server.speak(head.replace("\n", "\r\n").encode() + b"\r\n")
                self.assertNotRegex(answer, rb"^HTTP/1.1 200 ")
        self.assertEqual(server.fetch()[2], b"ok")

    def test_goes_on_after_callers_that_go(self):
        server = self.serve(self.ok)
        for part in (b"", b"GET / HT", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(part)
        self.assertEqual(server.fetch()[2], b"ok")


def run_all(calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class PhpTest(ServerTests, unittest.TestCase):
    language = harness.PHP
    entrypoint = "index.php"
    ok = "<?php return fn ($context) => $context->res->text('ok');"
    slow = "<?php return function ($context) { usleep(400_000); return $context->res->text('done'); };"
    meet = """<?php return function ($context) {
        touch(getenv('MEETING') . '/' . uniqid(getmypid()));
        while (count(scandir(getenv('MEETING'))) < 8 + 2) usleep(5_000);
        return $context->res->text('met'); };"""
    flood = """<?php return function ($context) {
        for ($i = 0; $i < 2000; $i++) $context->log(str_repeat('x', 7999));
        return $context->res->text('ok'); };"""
    echo = "<?php return fn ($context) => $context->res->text('[' . ($context->req->headers['authorization'] ?? '') . ']');"
    unloadable = (
        ("missing.php", None, "file missing.php does not exist"),
        ("syntax.php", "<?php return function (", "Syntax error in syntax.php"),
        ("throws.php", "<?php throw new Exception('at load');", "Failed to load module: at load"),
        ("needs.php", "<?php require 'absent.php';", "Failed to load module"),
        ("exits.php", "<?php exit(1);", "Failed to load module"),
        ("value.php", "<?php return 1;", "Function signature invalid"),
    )

    def test_keeps_its_state_from_one_execution_to_the_next(self):
        server = self.serve("<?php $n = 0; return function ($context) use (&$n) { return $context->res->text((string) ++$n); };")
        self.assertEqual([server.fetch()[2] for _ in range(3)], [b"1", b"2", b"3"])

    def test_tells_of_a_fatal_error_and_of_an_exit(self):
        cases = (
            ("function twice() {} eval('function twice() {}');", "Cannot redeclare"),
            ("exit(3);", "ended its process"),
            ("posix_kill(getmypid(), SIGKILL);", "was ended by signal 9"),
        )
        for code, expected in cases:
            with self.subTest(code):
                server = self.serve("<?php return function ($context) { " + code + " };")
                self.assertEqual(server.fetch("/", {"x-open-runtimes-log-id": "fatal"})[0], 500)
                self.assertIn(expected, server.read_log("fatal_errors.log"))
                self.assertEqual(server.fetch("/__opr/health")[0], 200)

    def test_finds_the_functions_own_packages(self):
        text = "<?php require 'vendor/autoload.php'; return fn ($context) => $context->res->text(PACKAGE);"
        with tempfile.TemporaryDirectory(prefix="function-") as folder:
            os.makedirs(f"{folder}/src")
            os.makedirs(f"{folder}/vendor")
            for name, content in (("src/index.php", text), ("vendor/autoload.php", "<?php const PACKAGE = 'found';")):
                with open(f"{folder}/{name}", "w") as file:
                    file.write(content)
            server = harness.Server(self.command, folder, OPEN_RUNTIMES_ENTRYPOINT="src/index.php")
        self.addCleanup(server.__exit__)
        self.assertEqual(server.fetch()[2], b"found")

    def test_workers_hold_no_socket_of_the_server(self):
        code = "<?php return function ($context) { return $context->res->text(shell_exec('ls -l /proc/' . getmypid() . '/fd')); };"
        server = self.serve(code)
        with socket.create_connection(("127.0.0.1", server.port)):
            descriptors = server.fetch()[2].decode()
        # Its end of the channel is the only one.
        self.assertEqual(descriptors.count("socket:"), 1, descriptors)


class RubyTest(ServerTests, unittest.TestCase):
    language = harness.RUBY
    entrypoint = "index.rb"
    ok = "def main(context) = context.res.text('ok')"
    slow = "def main(context)\n  sleep(0.4)\n  context.res.text('done')\nend"
    meet = (
        "def main(context)\n  folder = ENV['MEETING']\n  File.write(\"#{folder}/#{context.object_id}\", '')\n"
        "  sleep(0.005) while Dir.children(folder).size < 8\n  context.res.text('met')\nend"
    )
    flood = "def main(context)\n  2000.times { context.log('x' * 7999) }\n  context.res.text('ok')\nend"
    echo = "def main(context) = context.res.text(\"[#{context.req.headers['authorization']}]\")"
    unloadable = (
        ("missing.rb", None, "file missing.rb does not exist"),
        ("syntax.rb", "def (", "Syntax error in syntax.rb"),
        ("throws.rb", "raise 'at load'", "Failed to load file: at load"),
        ("needs.rb", "require 'absent_library'", "absent_library"),
        ("exits.rb", "exit(1)", "Failed to load file"),
        ("value.rb", "MAIN = 1", "Function signature invalid"),
    )

    def test_an_ended_function_is_over(self):
        server = self.serve(
            "$n = 0\ndef main(context)\n  return context.res.text($n.to_s) if context.req.path == '/n'\n"
            "  begin\n    loop { $n += 1 }\n  rescue Exception\n    retry\n  end\nend"
        )
        self.assertEqual(server.fetch("/", {"x-open-runtimes-timeout": "1"})[0], 500)
        time.sleep(0.3)
        before = server.fetch("/n")[2]
        time.sleep(0.2)
        self.assertEqual(server.fetch("/n")[2], before)

    def test_loads_rubygems_when_it_is_needed(self):
        server = self.serve("def main(context)\n  context.res.text(Gem::Version.new('1.2.0').bump.to_s)\nend")
        self.assertEqual(server.fetch()[2], b"1.3")

    def test_finds_the_functions_own_gems(self):
        with tempfile.TemporaryDirectory(prefix="function-") as folder:
            os.makedirs(f"{folder}/vendor/bundle/bundler")
            files = {
                "index.rb": "require 'part'\ndef main(context) = context.res.text(PART)",
                "vendor/bundle/bundler/setup.rb": "$:.unshift(File.expand_path('lib', __dir__))",
                "vendor/bundle/bundler/lib/part.rb": "PART = 'found'",
            }
            for name, text in files.items():
                os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
                with open(f"{folder}/{name}", "w") as file:
                    file.write(text)
            server = harness.Server(self.command, folder, OPEN_RUNTIMES_ENTRYPOINT="index.rb")
        self.addCleanup(server.__exit__)
        self.assertEqual(server.fetch()[2], b"found")

    def test_what_threads_of_the_function_print_is_its_own(self):
        server = self.serve("def main(context)\n  Thread.new { puts 'inside' }.join\n  context.res.text('ok')\nend")
        server.fetch("/", {"x-open-runtimes-log-id": "threads"})
        self.assertIn("inside\n", server.read_log("threads_logs.log"))


class JavascriptTests(ServerTests):
    ok = "export default ({ res }: any) => res.text('ok');"
    slow = """export default async ({ res }: any) => {
        await new Promise((resolve) => setTimeout(resolve, 400));
        return res.text('done'); };"""
    meet = """import fs from 'node:fs';
        import process from 'node:process';
        const folder = process.env.MEETING!;
        export default async ({ res }: any) => {
          fs.writeFileSync(`${folder}/${Math.random()}`, '');
          while (fs.readdirSync(folder).length < 8) await new Promise((resolve) => setTimeout(resolve, 5));
          return res.text('met'); };"""
    flood = """export default ({ res, log }: any) => {
        for (let i = 0; i < 2000; i += 1) log('x'.repeat(7999));
        return res.text('ok'); };"""
    echo = "export default ({ req, res }: any) => res.text(`[${req.headers.authorization ?? ''}]`);"
    unloadable = (
        ("missing.ts", None, "file missing.ts does not exist"),
        ("syntax.ts", "const = 1;", "syntax.ts"),
        ("throws.ts", "throw new Error('at load');", "Failed to load module: at load"),
        ("needs.ts", "import './absent.ts';", "absent"),
        ("exits.ts", "import process from 'node:process'; process.exit(4);", "Failed to load module"),
        ("value.ts", "export default 1;", "Function signature invalid"),
    )

    def test_starts_the_function_again_where_it_has_ended_its_process(self):
        server = self.serve(
            "import process from 'node:process'; let n = 0;\n"
            "export default ({ req, res }: any) => req.path === '/exit' ? process.exit(3) : res.text(String(++n));"
        )
        self.assertEqual([server.fetch()[2] for _ in range(2)], [b"1", b"2"])
        self.assertEqual(server.fetch("/exit", {"x-open-runtimes-log-id": "exit"})[0], 500)
        self.assertIn("has ended with status 3", server.read_log("exit_errors.log"))
        self.assertEqual(server.fetch()[2], b"1")

    def test_an_error_nobody_caught_ends_nothing_else(self):
        server = self.serve(
            "export default async ({ req, res }: any) => {\n"
            "  if (req.path === '/lost') { setTimeout(() => { throw new Error('lost'); }, 5); Promise.reject(new Error('too')); }\n"
            "  await new Promise((resolve) => setTimeout(resolve, 100));\n"
            "  return res.text('ok'); };"
        )
        answers = []
        run_all([lambda path=path: answers.append(server.fetch(path)[2]) for path in ("/", "/lost", "/")])
        self.assertEqual(answers, [b"ok"] * 3)

    def test_health_is_answered_while_a_function_blocks(self):
        server = self.serve("export default ({ res }: any) => { const end = Date.now() + 1500; while (Date.now() < end); return res.text('ok'); };")
        blocked = threading.Thread(target=server.fetch)
        blocked.start()
        time.sleep(0.2)
        self.assertEqual(server.fetch("/__opr/health")[2], b"OK")
        self.assertTrue(blocked.is_alive())
        blocked.join()

    def test_bytes_of_the_function_stay_its_own(self):
        server = self.serve("const bytes = new Uint8Array([1, 2, 3]); export default ({ res }: any) => res.binary(bytes);")
        self.assertEqual([server.fetch()[2] for _ in range(2)], [b"\1\2\3"] * 2)


class BunTest(JavascriptTests, unittest.TestCase):
    language = harness.BUN
    entrypoint = "index.ts"


class DenoTest(JavascriptTests, unittest.TestCase):
    language = harness.DENO
    entrypoint = "mod.ts"


if __name__ == "__main__":
    unittest.main()
