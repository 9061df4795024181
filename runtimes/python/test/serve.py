"""The server with paths of a test's choice: `python3 test/serve.py PORT CODE_DIR STATE_DIR`."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src"))

from runtime import workers
from runtime.serve import serve
from runtime.settings import Settings

if __name__ == "__main__":
    port, code_dir, state_dir = sys.argv[1:]
    workers.IDLE_S = float(os.environ.get("TEST_IDLE_S", workers.IDLE_S))
    settings = Settings.from_environment(os.environ)
    settings.port = int(port)
    settings.code_dir = os.path.abspath(code_dir)
    settings.logs_dir = f"{state_dir}/logs"
    settings.timings_file = f"{state_dir}/telemetry/timings.txt"
    serve(settings)
