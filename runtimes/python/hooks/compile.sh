# What is installed is there for a build without a network.
if ! is_offline; then keep_packages "$BUILD_DIR/runtime-env"; fi
