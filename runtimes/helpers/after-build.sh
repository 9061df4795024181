# What happens after the install command; sourced by lifecycle/build.sh.

run_hook compile

message "Build packaging started."
run_hook pack

PACK_DIR="$BUILD_DIR/${OPEN_RUNTIMES_OUTPUT_DIRECTORY:-}"
if is_empty "$PACK_DIR"; then
    message_error "Error: No build output found. Ensure your output directory isn't empty."
    exit 1
fi
choose_compression "$PACK_DIR"
{
    echo "OPEN_RUNTIMES_ENTRYPOINT=${OPEN_RUNTIMES_ENTRYPOINT:-}"
    echo "OPEN_RUNTIMES_CLEANUP=${OPEN_RUNTIMES_CLEANUP:-none}"
    echo "OPEN_RUNTIMES_COMPRESSION=$METHOD"
} > "$PACK_DIR/.open-runtimes"
pack "$METHOD" "$PACK_DIR" "$OUTPUT_DIR"
message "Build packaging finished."

(cd "$PACK_DIR" && bash "$SERVER_DIR/helpers/build-manifest.sh") || true
bash helpers/build-cache-save.sh || true

message_success "Build finished."
