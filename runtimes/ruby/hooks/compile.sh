# Installs what the Gemfile names, with a file that puts it in the load path, so that the server starts without Bundler.
if [ -f "$BUILD_DIR/Gemfile" ]; then
    # Where this folder is, gems are kept in it and taken from it.
    mkdir -p "$BUNDLE_CACHE_PATH"
    options=(--standalone)
    if is_offline; then options+=(--local); fi
    (cd "$BUILD_DIR" && bundle install "${options[@]}") || exit $?
fi
