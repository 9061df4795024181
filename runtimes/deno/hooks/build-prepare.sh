# What the install command downloads is packed with the function; the server finds it there.
export DENO_DIR="$BUILD_DIR/deno-cache"
# Deno brings its own certificate authorities; the system's count too, so that an operator's proxy is trusted.
export DENO_TLS_CA_STORE="${DENO_TLS_CA_STORE:-mozilla,system}"
