# What build and start share: paths, messages, hooks, metrics. Sourced with the server's directory as working directory.

shopt -s dotglob nullglob

SERVER_DIR=/usr/local/server
BUILD_DIR=/usr/local/build
FUNCTION_DIR=$SERVER_DIR/src/function
CODE_DIR=/mnt/code
TELEMETRY_DIR=/mnt/telemetry
INPUT_DIR="${OPEN_RUNTIMES_BUILD_INPUT_DIR:-/mnt/code}"
OUTPUT_DIR="${OPEN_RUNTIMES_BUILD_OUTPUT_DIR:-/mnt/code}"
ARCHIVE_NAMES=(code.sqfs code.tar code.tar.gz code.gz)

say() {
    printf '\033[90m[%(%H:%M:%S)T] \033[31m[\033[0mopen-runtimes\033[31m]\033[%sm %s \033[0m\n' -1 "$1" "$2"
}
message() { say 97 "$1"; }
message_error() { say 31 "$1"; }
message_success() { say 32 "$1"; }
message_warning() { say 33 "$1"; }

# A hook is sourced: what it exports stays for the phases after it.
run_hook() {
    if [ -f "$SERVER_DIR/hooks/$1.sh" ]; then
        cd "$SERVER_DIR"
        source "$SERVER_DIR/hooks/$1.sh"
    fi
    cd "$SERVER_DIR"
}

is_empty() {
    local entries
    [ -d "$1" ] || return 0
    entries=("$1"/*)
    [ ${#entries[@]} -eq 0 ]
}

# is_offline: whether no way leads out of the sandbox, as in a class with `outbound = "none"`.
is_offline() {
    [ -r /proc/net/route ] && ! grep -qv '^Iface' /proc/net/route && ! grep -qsv ' lo$' /proc/net/ipv6_route
}

# share FROM TO: TO gets the files of FROM, as links where both are on one file system.
share() {
    [ -d "$1" ] || return 0
    mkdir -p "$2"
    cp -Rlf "$1/." "$2/" 2> /dev/null || cp -Rf --preserve=mode,timestamps,links "$1/." "$2/"
}

# Appends `name=<seconds since began>` to the timings; one that cannot be written is no reason to fail.
metric() {
    local micros=$((${EPOCHREALTIME/./} - ${2/./}))
    printf '%s=%d.%03d\n' "$1" $((micros / 1000000)) $((micros / 1000 % 1000)) 2> /dev/null >> "$TELEMETRY_DIR/timings.txt" || true
}
