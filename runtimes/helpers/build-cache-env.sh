# Where package managers keep their caches during a build; sourced.

BUILD_CACHE_ROOT="${OPEN_RUNTIMES_BUILD_CACHE_ROOT:-/usr/local/cache/build}"
BUILD_CACHE_ARTIFACT="${OPEN_RUNTIMES_BUILD_CACHE_ARTIFACT:-/cache/stores.sqfs}"

export npm_config_cache="$BUILD_CACHE_ROOT/npm"
export YARN_CACHE_FOLDER="$BUILD_CACHE_ROOT/yarn"
export npm_config_store_dir="$BUILD_CACHE_ROOT/pnpm"
export XDG_CACHE_HOME="$BUILD_CACHE_ROOT/xdg-cache"
export XDG_STATE_HOME="$BUILD_CACHE_ROOT/xdg-state"
export BUN_INSTALL_CACHE_DIR="$BUILD_CACHE_ROOT/bun"
export BUNDLE_CACHE_PATH="$BUILD_CACHE_ROOT/gems"
export COMPOSER_CACHE_DIR="$BUILD_CACHE_ROOT/composer"
export GOMODCACHE="$BUILD_CACHE_ROOT/go/mod"

# Where no way leads out of the sandbox they take what is there, and say at once what is not.
if is_offline; then
    export CARGO_NET_OFFLINE="${CARGO_NET_OFFLINE:-true}"
    export COMPOSER_DISABLE_NETWORK="${COMPOSER_DISABLE_NETWORK:-1}"
    export GOPROXY="${GOPROXY:-off}"
    export PIP_RETRIES="${PIP_RETRIES:-0}"
    export npm_config_offline="${npm_config_offline:-true}"
fi
