"""The table of conformance.json against each language's server, as a process of its own, where the language is installed."""

import base64
import hashlib
import http.client
import json
import os
import tempfile
import time
import unittest

import harness

with open(f"{os.path.dirname(os.path.abspath(__file__))}/conformance.json", encoding="utf-8") as table:
    CHECKS = json.load(table)["checks"]
SECONDARY = {"OPEN_RUNTIMES_SECRET": "", "OPEN_RUNTIMES_HEADERS": "", "OPEN_RUNTIMES_ENV": "development"}
SERVERS = {
    "main": {
        "OPEN_RUNTIMES_SECRET": "test-secret-key",
        "OPEN_RUNTIMES_HEADERS": '{"x-custom":"value","X-CUSTOM-UPPERCASE":"Value2","x-open-runtimes-custom":248}',
        "CUSTOM_ENV_VAR": "customValue",
    },
    "secondary": SECONDARY,
    "no-export": SECONDARY,
}


class Conformance(unittest.TestCase):
    def test_python_asynchronous(self):
        self.run_all(harness.PYTHON, "tests.py")

    def test_python_synchronous(self):
        self.run_all(harness.PYTHON, "tests_sync.py")

    def test_php(self):
        self.run_all(harness.PHP, "tests.php")

    def test_ruby(self):
        self.run_all(harness.RUBY, "tests.rb")

    def test_bun(self):
        self.run_all(harness.BUN, "tests.ts")

    def test_deno(self):
        self.run_all(harness.DENO, "tests.ts")

    def run_all(self, language, entrypoint):
        if not language.is_installed():
            self.skipTest(f"{language.name} is not installed; its image is tested on a node")
        tree = tempfile.TemporaryDirectory(prefix="tree-")
        self.addCleanup(tree.cleanup)
        command = language.command(tree.name)
        servers = {}
        try:
            for name, env in SERVERS.items():
                file = f"no-export.{language.extension}" if name == "no-export" else entrypoint
                servers[name] = harness.Server(command, language.fixtures(), OPEN_RUNTIMES_ENTRYPOINT=file, **env)
            for check in CHECKS:
                if language.name not in check.get("only", [language.name]):
                    continue
                name = check.get("server", "main")
                with self.subTest(check["id"]):
                    self.run_check(check, servers[name], SERVERS[name]["OPEN_RUNTIMES_SECRET"])
        finally:
            for server in servers.values():
                server.__exit__()

    def run_check(self, check, server, secret):
        wanted, expect = check["request"], check["expect"]
        server.clear_logs()
        began = time.monotonic()
        body = body_of(wanted)
        status, headers, answer = send(server.port, wanted, headers_of(wanted, secret), body)
        if "maxSeconds" in expect:
            self.assertLess(time.monotonic() - began, expect["maxSeconds"])
        self.assertIn(status, expect["status"], answer)
        self.compare_body(expect, answer, body)
        self.compare_headers(expect, headers, wanted)
        name = dict(headers).get("x-open-runtimes-log-id") or "dev"
        for stream in ("logs", "errors"):
            if stream in expect:
                self.compare_log(expect[stream], server.read_log(f"{name}_{stream}.log"), "tests")
        if expect.get("noFiles"):
            self.assertEqual(server.log_files(), [])

    def compare_body(self, expect, answer, sent):
        if "bodyHex" in expect:
            self.assertEqual(answer.hex(), expect["bodyHex"])
        if "bodyHexPrefix" in expect:
            self.assertTrue(answer.hex().startswith(expect["bodyHexPrefix"]))
        if "body" in expect:
            self.assertEqual(answer.decode(), expect["body"])
        if "json" in expect:
            self.assertEqual(json.loads(answer), expect["json"])
        for part in expect.get("bodyContains", []):
            self.assertIn(part, answer.decode())
        for part in expect.get("bodyLacks", []):
            self.assertNotIn(part, answer.decode())
        for key, value in expect.get("jsonContains", {}).items():
            self.assertEqual(json.loads(answer).get(key), value)
        if expect.get("bodyIsMd5OfRequest"):
            self.assertEqual(answer.decode(), hashlib.md5(sent).hexdigest())

    def compare_headers(self, expect, headers, wanted):
        for name, value in expect.get("headers", {}).items():
            values = [given for key, given in headers if key == name]
            wanted_values = [] if value is None else value if isinstance(value, list) else [value]
            self.assertEqual(values, wanted_values, name)
        for name, part in expect.get("headerContains", {}).items():
            self.assertIn(part, dict(headers)[name])
        log_id = dict(headers).get("x-open-runtimes-log-id")
        if expect.get("logId") == "generated":
            self.assertEqual(len(log_id), 20)
            self.assertNotEqual(log_id, wanted.get("headers", {}).get("x-open-runtimes-log-id"))
        elif "logId" in expect:
            self.assertEqual(log_id, expect["logId"])

    def compare_log(self, expect, text, entrypoint):
        for part in expect.get("contains", []):
            self.assertIn(part.replace("{entrypoint}", entrypoint), text)
        for part in expect.get("containsAnyCase", []):
            self.assertIn(part.lower(), text.lower())
        for part in expect.get("lacks", []):
            self.assertNotIn(part, text)
        if "equals" in expect:
            self.assertEqual(text, expect["equals"])
        self.assertGreaterEqual(len(text.split("\n")), expect.get("minLines", 0))
        if expect.get("empty"):
            self.assertEqual(text, "")


def body_of(wanted):
    if "bodySize" in wanted:
        return b"a" * wanted["bodySize"]
    return bytes.fromhex(wanted["bodyHex"]) if "bodyHex" in wanted else wanted.get("body", "").encode()


def headers_of(wanted, server_secret):
    given = wanted.get("headers", {})
    secret = wanted["secret"] if "secret" in wanted else server_secret
    names = {name.lower() for name in given}
    headers = dict(given)
    if "content-type" not in names:
        headers["content-type"] = "text/plain"
    if secret:
        headers["x-open-runtimes-secret"] = secret
        if "authorization" not in names:
            headers["authorization"] = "Basic " + base64.b64encode(f"opr:{secret}".encode()).decode()
    return headers


def send(port, wanted, headers, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        chunks = None
        if wanted.get("chunked"):
            chunks = (body[at : at + 65536] for at in range(0, len(body), 65536))
            headers["transfer-encoding"] = "chunked"
        connection.request(
            wanted.get("method", "POST"),
            wanted.get("path", "/"),
            body=chunks or body or None,
            headers=headers,
            encode_chunked=chunks is not None,
        )
        answer = connection.getresponse()
        return answer.status, [(name.lower(), value) for name, value in answer.getheaders()], answer.read()
    finally:
        connection.close()


if __name__ == "__main__":
    unittest.main()
