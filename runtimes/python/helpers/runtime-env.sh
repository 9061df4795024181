# The function's virtual environment: made in the build, used in place by the server. Sourced by the hooks.

# create_runtime_env DIR: a copy of the image's own, which has been made at this path and has pip.
create_runtime_env() {
    rm -rf "$1"
    cp -R --preserve=mode,timestamps,links "$SERVER_DIR/runtime-env" "$1"
    export VIRTUAL_ENV="$1"
    export PATH="$1/bin:$PATH"
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    # All bytecode is made at the end, in a form that does not depend on the files' times.
    export PIP_NO_COMPILE=1
    # pip brings its own certificate authorities; the system's count, so that an operator's proxy is trusted.
    if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
        export PIP_CERT="${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}"
        export REQUESTS_CA_BUNDLE="${REQUESTS_CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}"
    fi
}

# settle_runtime_env FROM TO: without pip, and with TO written where scripts name the place they were made in.
settle_runtime_env() {
    local file
    [ -d "$1" ] || return 0
    rm -rf "$1"/bin/pip* "$1"/lib/python*/site-packages/pip "$1"/lib/python*/site-packages/pip-*.dist-info
    for file in "$1"/bin/* "$1/pyvenv.cfg"; do
        if [ -f "$file" ] && [ ! -L "$file" ] && grep -qI "$1" "$file"; then
            sed -i "s|$1|$2|g" "$file"
        fi
    done
}

# compile_bytecode DIR: what does not compile is left to fail where it is imported.
compile_bytecode() {
    find "$1" -name __pycache__ -prune -exec rm -rf {} +
    /usr/bin/python3 -m compileall -qq --invalidation-mode unchecked-hash "$1" > /dev/null 2>&1 || true
}

# keep_packages DIR: in the build cache, in place of those of the build before.
keep_packages() {
    local kept part
    kept=$(kept_packages)
    rm -rf "$BUILD_CACHE_ROOT/runtime-env"
    for part in bin lib; do share "$1/$part" "$kept/$part"; done
    rm -rf "$kept"/bin/python* "$kept"/bin/pip* "$kept"/lib/python*/site-packages/pip{,-*}
}

# restore_packages DIR: those of the last build with a network, where it had this version of Python.
restore_packages() {
    share "$(kept_packages)" "$1"
}

kept_packages() {
    printf '%s/runtime-env/%s' "$BUILD_CACHE_ROOT" "$(/usr/bin/python3 -c 'import sys; print(sys.implementation.cache_tag)')"
}
