# Where package managers keep their caches during a build; sourced.

BUILD_CACHE_ROOT="${OPEN_RUNTIMES_BUILD_CACHE_ROOT:-/usr/local/cache/build}"
BUILD_CACHE_ARTIFACT="${OPEN_RUNTIMES_BUILD_CACHE_ARTIFACT:-/cache/stores.sqfs}"

export npm_config_cache="$BUILD_CACHE_ROOT/npm"
export YARN_CACHE_FOLDER="$BUILD_CACHE_ROOT/yarn"
export npm_config_store_dir="$BUILD_CACHE_ROOT/pnpm"
export XDG_CACHE_HOME="$BUILD_CACHE_ROOT/xdg-cache"
export XDG_STATE_HOME="$BUILD_CACHE_ROOT/xdg-state"
export BUN_INSTALL_CACHE_DIR="$BUILD_CACHE_ROOT/bun"
