# Builds the server with the function in it, where the start finds it.
echo "Compiling ..."
# The build cache would throw away what is older than a few days, as all that came with the image is.
date +%s > "$GOCACHE/trim.txt"
if [ -f "$BUILD_DIR/go.sum" ]; then cp "$BUILD_DIR/go.sum" src/go.sum; fi
go build -C src -mod=mod -trimpath -buildvcs=false -ldflags="-s -w" -o "$BUILD_DIR/server" . || exit $?
