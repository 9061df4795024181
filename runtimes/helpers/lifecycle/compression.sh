# How the build's output becomes an archive.

AUTO_GZIP_FROM_KIB=5120

# choose_compression DIR: sets METHOD to none, skip, squashfs, zstd or gzip.
choose_compression() {
    local size
    case "${OPEN_RUNTIMES_BUILD_COMPRESSION:-}" in
        none | skip | squashfs | zstd) METHOD=$OPEN_RUNTIMES_BUILD_COMPRESSION ;;
        auto)
            size=$(du -sk "$1" | cut -f1)
            METHOD=gzip
            [ "$size" -ge $AUTO_GZIP_FROM_KIB ] || METHOD=none
            message "Auto compression: $METHOD (size=${size}KB)"
            ;;
        *) METHOD=gzip ;;
    esac
}

# pack METHOD DIR OUTPUT_DIR
pack() {
    local excludes=() name
    for name in "${ARCHIVE_NAMES[@]}"; do excludes+=(--exclude="$name"); done
    local tar=(tar -C "$2" --owner=0 --group=0 --numeric-owner "${excludes[@]}")
    local archive="$3/code.tar.gz"
    # A source archive of the same name may still lie there, and the start looks for the others first.
    for name in "${ARCHIVE_NAMES[@]}"; do rm -f "$3/$name"; done
    case "$1" in
        none) "${tar[@]}" -cf "$archive" . ;;
        gzip) "${tar[@]}" -czf "$archive" . ;;
        zstd) (set -o pipefail && "${tar[@]}" -cf - . | zstd -q -T0 -o "$archive") ;;
        squashfs) pack_squashfs "$2" "$3/code.sqfs" ;;
        skip)
            cp -R --preserve=mode,timestamps,links "$2/." "$3/"
            touch "$3/.extracted"
            ;;
    esac
}

# The tool's output is shown when it fails, and its status is the build's.
pack_squashfs() {
    local output status=0
    output=$(mksquashfs "$1" "$2" -comp lz4 -b 1M -noappend -no-xattrs -no-progress -all-root \
        -wildcards -e "${ARCHIVE_NAMES[@]/#/... }" 2>&1) || status=$?
    if [ $status -ne 0 ]; then
        echo "$output"
        exit $status
    fi
}
