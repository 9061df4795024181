# Builds the server with the function in it, where the start finds it.
echo "Compiling ..."
echo "#include \"$BUILD_DIR/$OPEN_RUNTIMES_ENTRYPOINT\"" > src/entrypoint.h
# Sources may be older than what has been compiled of another function.
find "$BUILD_DIR" -type f \( -name '*.c*' -o -name '*.h*' \) -exec touch {} +
cmake -S src -B "$CMAKE_BUILD_DIR" || exit $?
make --no-print-directory -C "$CMAKE_BUILD_DIR" -j "$(nproc)" cpp_runtime || exit $?
cp "$CMAKE_BUILD_DIR/cpp_runtime" "$BUILD_DIR/cpp_runtime"
