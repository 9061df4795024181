# Makes and activates the virtual environment that the install command fills.
source helpers/runtime-env.sh
create_runtime_env "$BUILD_DIR/runtime-env"
