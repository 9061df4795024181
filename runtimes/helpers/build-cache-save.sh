#!/bin/bash
# Packs the package managers' caches for the next build. Always succeeds, and never harms the artifact that is there.

helpers="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$helpers/lifecycle/lib.sh"
source "$helpers/build-cache-env.sh"

FAILED="Build cache warning: failed to save cache, build result preserved."
max_size="${OPEN_RUNTIMES_BUILD_CACHE_MAX_SIZE_BYTES:-}"
time_limit="${OPEN_RUNTIMES_BUILD_CACHE_SAVE_TIMEOUT_SECONDS:-}"

finish() {
    message "$1"
    exit 0
}
give_up() {
    message_warning "$1"
    exit 0
}

command -v mksquashfs > /dev/null || give_up "Build cache warning: missing mksquashfs, continuing without cache save."
[ -d "$BUILD_CACHE_ROOT" ] || finish "Build cache save skipped: cache root missing."
directory=$(dirname "$BUILD_CACHE_ARTIFACT")
mkdir -p "$directory" 2> /dev/null || finish "Build cache save skipped: artifact directory could not be created."
output=$(mktemp "$directory/build-cache-save.XXXXXX" 2> /dev/null) ||
    give_up "Build cache warning: failed to create cache save log, build result preserved."
packed="$BUILD_CACHE_ARTIFACT.tmp"
trap 'rm -f "$output" "$packed"' EXIT
rm -f "$packed"

limit=()
[ -z "$time_limit" ] || limit=(timeout "$time_limit")
"${limit[@]}" mksquashfs "$BUILD_CACHE_ROOT" "$packed" -comp lz4 -b 1M -noappend -no-xattrs -no-progress \
    -mkfs-time 0 > "$output" 2>&1
status=$?
if [ $status -ne 0 ]; then
    if [ $status -eq 124 ] && [ -n "$time_limit" ]; then
        message_warning "Build cache warning: failed to save cache before timeout (${time_limit}s), build result preserved."
    else
        message_warning "Build cache warning: failed to save cache with exit code $status, build result preserved."
    fi
    while IFS= read -r line || [ -n "$line" ]; do
        message_warning "Build cache mksquashfs output: $line"
    done < "$output"
    give_up "$FAILED"
fi

size=$(stat -c %s "$packed" 2> /dev/null) || give_up "$FAILED"
if [[ $max_size =~ ^[0-9]+$ ]] && [ "$size" -gt "$max_size" ]; then
    finish "Build cache save skipped: artifact too large ($size bytes, max $max_size bytes)."
fi
old_size=
if [ -f "$BUILD_CACHE_ARTIFACT" ]; then
    cmp -s "$packed" "$BUILD_CACHE_ARTIFACT" && finish "Build cache save skipped: artifact unchanged ($size bytes)."
    old_size=$(stat -c %s "$BUILD_CACHE_ARTIFACT")
fi
mv -f "$packed" "$BUILD_CACHE_ARTIFACT" 2> /dev/null || give_up "$FAILED"
[ -f "$BUILD_CACHE_ARTIFACT" ] ||
    give_up "Build cache warning: failed to verify saved cache artifact, build result preserved."
if [ -n "$old_size" ]; then
    finish "Build cache saved. ($old_size bytes -> $size bytes)"
fi
finish "Build cache saved. ($size bytes)"
