# How an archive becomes the function's directory.

# extract_code BEGAN: unpacks the first archive there is; the host names the one that it has mounted.
extract_code() {
    local archive
    for archive in "${ARCHIVE_NAMES[@]/#/$CODE_DIR/}" "${OPEN_RUNTIMES_CODE_PATH:-}"; do
        if [ -f "$archive" ]; then
            mkdir -p "$FUNCTION_DIR"
            extract "$archive" "$FUNCTION_DIR"
            metric extract "$1"
            return
        fi
    done
    message_error "Code archive not found."
    exit 1
}

# extract FILE DIR: the format is what the first bytes say, never the name.
extract() {
    case "$(od -An -N4 -tx1 "$1" | tr -d ' \n')" in
        68737173) unsquashfs -quiet -no-progress -force -dest "$2" "$1" ;;
        1f8b*) tar --no-same-owner -xzf "$1" -C "$2" ;;
        28b52ffd) (set -o pipefail && zstd -dcq "$1" | tar --no-same-owner -xf - -C "$2") ;;
        *) tar --no-same-owner -xf "$1" -C "$2" ;;
    esac
}

# link_tree FROM TO: TO becomes links to every entry of FROM but archives and the marker.
link_tree() {
    local entry name
    rm -rf "$2"/* || return 1
    mkdir -p "$2"
    for entry in "$1"/*; do
        name=${entry##*/}
        case "$name" in .extracted | code.sqfs | code.tar | code.tar.gz | code.gz) continue ;; esac
        ln -s "$entry" "$2/$name" 2> /dev/null || return 1
    done
}

# export_metadata FILE: KEY=value lines become the environment; they are read, never executed.
export_metadata() {
    local line key value
    [ -f "$1" ] || { message_error "Error: Function metadata is missing. Build the function again."; exit 1; }
    while IFS= read -r line || [ -n "$line" ]; do
        line=${line%$'\r'}
        key=${line%%=*}
        value=${line#*=}
        [[ $line == *=* && $key =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || continue
        if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then value=${BASH_REMATCH[1]}; fi
        export "$key=$value"
    done < "$1"
}
