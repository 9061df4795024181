#!/bin/bash
# Unpacks the package managers' caches of an earlier build. Always succeeds: a build works without them.

helpers="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$helpers/lifecycle/lib.sh"
source "$helpers/build-cache-env.sh"

if ! command -v unsquashfs > /dev/null; then
    message_warning "Build cache warning: missing unsquashfs, continuing without cache restore."
    exit 0
fi
mkdir -p "$BUILD_CACHE_ROOT" 2> /dev/null
if [ ! -f "$BUILD_CACHE_ARTIFACT" ]; then
    message "Build cache miss."
elif unsquashfs -quiet -no-progress -force -dest "$BUILD_CACHE_ROOT" "$BUILD_CACHE_ARTIFACT" > /dev/null 2>&1; then
    message "Build cache hit."
else
    rm -rf "$BUILD_CACHE_ROOT" && mkdir -p "$BUILD_CACHE_ROOT"
    message_warning "Build cache warning: failed to restore cache, starting fresh."
fi
exit 0
