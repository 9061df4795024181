# What the install command downloads is packed with the function; the server finds it there.
export DENO_DIR="$BUILD_DIR/deno-cache"
# Deno brings its own certificate authorities; the system's count too, so that an operator's proxy is trusted.
export DENO_TLS_CA_STORE="${DENO_TLS_CA_STORE:-mozilla,system}"

# Of what earlier builds have downloaded there is what the function imports. Without a network there is all of it; with
# one, newer versions are asked for.
share "$BUILD_CACHE_ROOT/deno" "$DENO_DIR"
if [ -d "$DENO_DIR" ] && ! is_offline; then
    (cd "$BUILD_DIR" && deno clean --quiet --except "$OPEN_RUNTIMES_ENTRYPOINT" > /dev/null 2>&1) || rm -rf "$DENO_DIR"
    find "$DENO_DIR/npm" -name registry.json -delete 2> /dev/null || true
fi
