# Bun brings its own certificate authorities; the system's count too, so that an operator's proxy is trusted.
if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
    export NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt}"
fi
# Bun asks its registry for all that is not locked.
locks=("$BUILD_DIR"/bun.lock*)
if is_offline && [ ${#locks[@]} -eq 0 ]; then share "$BUILD_CACHE_ROOT/bun-lock" "$BUILD_DIR"; fi
