# The build, from sources to archive.

source helpers/lifecycle/lib.sh
source helpers/lifecycle/compression.sh

# build COMMAND
build() {
    source helpers/before-build.sh

    message "Build command execution started."
    # A command that fails ends the build with its own status.
    (cd "$BUILD_DIR" && exec bash -c "$1") || exit $?
    message "Build command execution finished."

    source helpers/after-build.sh
}
