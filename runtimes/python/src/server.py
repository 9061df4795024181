"""The HTTP server of the python runtime: the sandbox's main process.

It binds first, then loads the function, so that a caller who connects at once waits for the module and nothing else.
"""

import os

from runtime.serve import serve
from runtime.settings import Settings

if __name__ == "__main__":
    serve(Settings.from_environment(os.environ))
