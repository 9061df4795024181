# Installs what the Gemfile names, with a file that puts it in the load path, so that the server starts without Bundler.
if [ -f "$BUILD_DIR/Gemfile" ]; then
    (cd "$BUILD_DIR" && bundle install --standalone) || exit $?
fi
