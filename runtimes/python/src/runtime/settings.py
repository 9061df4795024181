"""What the server is told by its environment, read once at start."""

import binascii
import os

SOURCE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Settings:
    """The paths and the port are the protocol's own."""

    def __init__(self):
        self.port = 3000
        self.code_dir = os.path.join(SOURCE_DIR, "function")
        self.logs_dir = "/mnt/logs"
        self.timings_file = "/mnt/telemetry/timings.txt"
        self.startup_began = None
        self.secret = ""
        # The caller's credential with that secret, which is not the function's to see.
        self.own_credential = None
        self.is_development = False
        self.entrypoint = "main.py"
        self.enforced_headers = {}
        self.n_processes = 1

    @classmethod
    def from_environment(cls, env):
        settings = cls()
        settings.secret = env.get("OPEN_RUNTIMES_SECRET", "")
        if settings.secret:
            encoded = binascii.b2a_base64(f"opr:{settings.secret}".encode(), newline=False)
            settings.own_credential = "Basic " + encoded.decode()
        settings.is_development = env.get("OPEN_RUNTIMES_ENV") == "development"
        settings.entrypoint = env.get("OPEN_RUNTIMES_ENTRYPOINT") or settings.entrypoint
        settings.enforced_headers = parse_enforced_headers(env.get("OPEN_RUNTIMES_HEADERS"))
        settings.n_processes = count_processes(env.get("OPEN_RUNTIMES_CPUS"))
        try:
            settings.startup_began = float(env["OPEN_RUNTIMES_STARTUP_BEGAN"])
        except (KeyError, ValueError):
            pass
        return settings


def parse_enforced_headers(text):
    """Lower-cased names with text values; anything that is no JSON object means none."""
    if not text or text == "{}":
        return {}
    import json

    try:
        parsed = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    return {name.lower(): value if isinstance(value, str) else json.dumps(value) for name, value in parsed.items()}


def count_processes(text):
    """One process for each CPU or part of one, since threads share one interpreter lock."""
    try:
        cpus = float(text or 1)
    except ValueError:
        return 1
    return int(max(1, min(64, -(-cpus // 1)))) if cpus == cpus else 1
