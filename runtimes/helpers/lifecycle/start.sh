# The start, from archive to running server.

source helpers/lifecycle/lib.sh
source helpers/lifecycle/extract.sh

# start COMMAND
start() {
    source helpers/before-start.sh

    # The server takes this process's place, so that signals and exit status are its own; it notes its own `startup` metric.
    export OPEN_RUNTIMES_STARTUP_BEGAN=$EPOCHREALTIME
    exec bash -c "$1"
}
