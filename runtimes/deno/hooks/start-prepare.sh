# What the function has not brought is downloaded to it, where it can be written.
mkdir -p "$FUNCTION_DIR"/deno-cache/{npm,remote,gen/http,gen/https} 2> /dev/null || true
