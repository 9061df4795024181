# Makes node_modules smaller: see helpers/prune.sh.
source helpers/prune.sh
prune "$BUILD_DIR/${OPEN_RUNTIMES_OUTPUT_DIRECTORY:-}"
