#!/bin/bash
# The default start command: becomes the language's server.
set -e
cd /usr/local/server
if [ -f hooks/server.sh ]; then
    source hooks/server.sh
else
    exec bash -c "$OPEN_RUNTIMES_SERVER_COMMAND"
fi
