# What is downloaded is there for the next build.
rm -rf "$BUILD_CACHE_ROOT/deno"
for part in npm remote; do share "$DENO_DIR/$part" "$BUILD_CACHE_ROOT/deno/$part"; done

# The function's own modules are transpiled under the names that they will have, since Deno waits where it cannot do that
# at the start. What cannot be transpiled is told there.
rm -rf "$DENO_DIR"/gen/file "$DENO_DIR"/*_cache_v*
if rmdir "$FUNCTION_DIR" 2> /dev/null; then
    ln -s "$BUILD_DIR/${OPEN_RUNTIMES_OUTPUT_DIRECTORY:-}" "$FUNCTION_DIR"
    deno cache --quiet --no-lock --config deno.json "$FUNCTION_DIR/$OPEN_RUNTIMES_ENTRYPOINT" > /dev/null 2>&1 || true
    rm "$FUNCTION_DIR"
    mkdir "$FUNCTION_DIR"
fi
rm -rf "$DENO_DIR"/*_cache_v*
