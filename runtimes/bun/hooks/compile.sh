# What is locked is there for a build without a network.
locks=("$BUILD_DIR"/bun.lock*)
if [ ${#locks[@]} -gt 0 ]; then
    rm -rf "$BUILD_CACHE_ROOT/bun-lock"
    mkdir -p "$BUILD_CACHE_ROOT/bun-lock"
    cp "${locks[@]}" "$BUILD_CACHE_ROOT/bun-lock/"
fi
