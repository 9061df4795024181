# Starts a built site's server. Sourced by each framework's server.sh.
set -e

# serve FRAMEWORK [COMMAND]: the command runs in the site's folder, where the caller names none.
serve() {
    local command=${OPEN_RUNTIMES_START_COMMAND:-${2:-node /usr/local/server/src/site/server.mjs $1}}
    cd /usr/local/server/src/function
    export HOST=0.0.0.0 PORT=3000
    export NODE_OPTIONS="--import=/usr/local/server/src/site/injection.mjs ${NODE_OPTIONS:-}"
    # A framework's own server says in its own words that it listens.
    exec bash -c "exec $command"
}
