# The output is nitro's, or the framework's own; where none is configured, the one that is there.
output=${OPEN_RUNTIMES_OUTPUT_DIRECTORY:-}
if [ -z "$output" ]; then
    export OPEN_RUNTIMES_OUTPUT_DIRECTORY=.output
    [ -d /usr/local/build/.output ] || OPEN_RUNTIMES_OUTPUT_DIRECTORY=dist
fi
source /usr/local/server/helpers/site/bundle.sh
bundle_if server/server.js server/index.mjs
rm -rf server/node_modules
bundle server/server.js server/index.mjs
# Then the lifecycle packs the whole build: it becomes the output.
if [ -z "$output" ]; then
    mv "$PWD" "$BUILD_DIR.output"
    rm -rf "${BUILD_DIR:?}"/*
    mv "$BUILD_DIR.output"/* "$BUILD_DIR/"
    rmdir "$BUILD_DIR.output"
fi
