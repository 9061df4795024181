# Brings the built function to its place and its environment; sourced by lifecycle/start.sh.

mkdir -p "$TELEMETRY_DIR" 2> /dev/null || true

if [ -n "${OPEN_RUNTIMES_CODE_MOUNTED:-}" ]; then
    message "Code already extracted, skipping extraction."
    metric extract "$EPOCHREALTIME"
elif [ -e "$CODE_DIR/.extracted" ]; then
    message "Code already extracted, skipping extraction."
    began=$EPOCHREALTIME
    if link_tree "$CODE_DIR" "$FUNCTION_DIR"; then
        metric symlink "$began"
    else
        message_warning "Symlink failed, falling back to extraction."
        extract_code "$began"
    fi
else
    message "Code extraction started."
    extract_code "$EPOCHREALTIME"
fi
message "Code extraction finished."
export_metadata "$FUNCTION_DIR/.open-runtimes"

message "Environment preparation started."
began=$EPOCHREALTIME
run_hook start-prepare
metric prepare "$began"
message "Environment preparation finished."
message_success "Runtime started."
