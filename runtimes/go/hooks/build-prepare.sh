# Modules that are downloaded are there for the next build.
export GOMODCACHE="$BUILD_CACHE_ROOT/go/mod"
