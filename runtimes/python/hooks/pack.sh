# Makes the virtual environment fit to be used where the server finds it.
source helpers/runtime-env.sh
settle_runtime_env "$BUILD_DIR/runtime-env" "$FUNCTION_DIR/runtime-env"
compile_bytecode "$BUILD_DIR"
