# Makes what a framework has built whole, so that it runs without its sources. Sourced by each framework's bundle.sh, after the
# framework's own build command.
set -e
shopt -s dotglob nullglob
source /usr/local/server/helpers/lifecycle/lib.sh

cd "$BUILD_DIR/${OPEN_RUNTIMES_OUTPUT_DIRECTORY:-}" || exit 0

# bundle_if FILE...: only where one of them is there; a site exported as static files is left alone.
bundle_if() {
    local file
    for file in "$@"; do [ ! -e "$file" ] || return 0; done
    exit 0
}

# Dependencies, and what names them, come into the output.
move_dependencies() {
    [ "$PWD" != "$BUILD_DIR" ] || return 0
    local entry
    for entry in "$BUILD_DIR"/package*.json "$BUILD_DIR/node_modules"; do
        [ ! -e "$entry" ] || mv "$entry" ./
    done
}

# nest NAME: the output becomes a folder of itself.
nest() {
    local outside="$BUILD_DIR/.nested"
    mkdir "$outside"
    mv ./* "$outside/"
    mkdir -p "$1"
    mv "$outside"/* "$1/"
    rmdir "$outside"
}

# bundle FILE...: what most frameworks need.
bundle() {
    bundle_if "$@"
    message "Bundling for SSR started."
    move_dependencies
    message "Bundling for SSR finished."
}
