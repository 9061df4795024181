# Makes and activates the virtual environment that the install command fills.
source helpers/runtime-env.sh
create_runtime_env "$BUILD_DIR/runtime-env"
# pip asks its index for all that is not installed.
if is_offline; then restore_packages "$BUILD_DIR/runtime-env"; fi
