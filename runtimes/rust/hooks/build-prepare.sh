# Crates that are downloaded are there for the next build.
for part in registry/cache registry/index git; do
    kept="$BUILD_CACHE_ROOT/cargo/$part"
    mkdir -p "$kept" "$CARGO_HOME/$part"
    cp -R --no-clobber "$CARGO_HOME/$part/." "$kept/"
    rm -rf "${CARGO_HOME:?}/$part"
    ln -s "$kept" "$CARGO_HOME/$part"
done
