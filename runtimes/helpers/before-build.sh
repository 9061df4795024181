# What happens before the install command; sourced by lifecycle/build.sh.

source helpers/build-cache-env.sh
bash helpers/build-cache-restore.sh || true

message "Environment preparation started."
if is_empty "$INPUT_DIR"; then
    message_error "Error: No source code found. Ensure your source isn't empty."
    exit 1
fi
mkdir -p "$BUILD_DIR" "$OUTPUT_DIR"
# Ownership stays the sandbox's own: another's ids may have no name in it.
cp -R --preserve=mode,timestamps,links "$INPUT_DIR/." "$BUILD_DIR/"
run_hook build-prepare
message "Environment preparation finished."
