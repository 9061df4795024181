# Removes from node_modules what a running function does not read; sourced by hooks/pack.sh.

# prune DIR: sets OPEN_RUNTIMES_CLEANUP to what was done.
prune() {
    local entry status=0
    export OPEN_RUNTIMES_CLEANUP=none
    [ -d "$1/node_modules" ] || return 0
    if [ "${OPEN_RUNTIMES_NFT:-}" = enabled ]; then
        # What Next.js loads at run time cannot be traced from one file.
        [ ! -d "$1/.next" ] && [ ! -d "$BUILD_DIR/.next" ] || { prune_next "$1"; return 0; }
        node helpers/trace.js "$1" || status=$?
        if [ $status -eq 0 ]; then
            export OPEN_RUNTIMES_CLEANUP=nft
        else
            message_warning "NFT failed (exit $status), skipping pruning."
        fi
    else
        prune_junk "$1"
    fi
}

prune_next() {
    [ "${OPEN_RUNTIMES_NEXTJS_CLEANUP:-modclean}" != modclean ] || prune_junk "$1"
}

# Documentation and the like. A file that stays is no reason to fail a build.
prune_junk() {
    [ "${OPEN_RUNTIMES_MODCLEAN,,}" != disabled ] || return 0
    (cd "$1" && modclean --run --no-progress --patterns default:safe > /dev/null 2>&1) || true
    find "$1" -path '*/node_modules/*' -type f -name '*.md' -delete
    export OPEN_RUNTIMES_CLEANUP=modclean
}
