source /usr/local/server/helpers/site/bundle.sh
bundle_if standalone/server.js server/webpack-runtime.js turbopack
message "Bundling for SSR started."
rm -rf cache/webpack cache/swc
if [ -e standalone/server.js ]; then
    # The standalone tree is the output; it lacks the static files.
    mv standalone "$BUILD_DIR/.standalone"
    mkdir -p "$BUILD_DIR/.standalone/.next"
    mv static "$BUILD_DIR/.standalone/.next/static"
    rm -rf ./*
    mv "$BUILD_DIR/.standalone"/* ./
    rmdir "$BUILD_DIR/.standalone"
else
    nest .next
    for config in "$BUILD_DIR"/next.config.*; do mv "$config" ./; done
    move_dependencies
fi
[ ! -d "$BUILD_DIR/public" ] || mv "$BUILD_DIR/public" ./public
message "Bundling for SSR finished."
