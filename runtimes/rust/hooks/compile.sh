# Builds the server with the function in it, where the start finds it.
echo "Compiling ..."

# The function's crate is a library, whose root is the entrypoint.
manifest=$(cat "$BUILD_DIR/Cargo.toml") || exit $?
awk '
    /^[ \t]*\[/ { is_lib = /^[ \t]*\[[ \t]*lib[ \t]*\]/ }
    !is_lib
    END { printf "\n[lib]\npath = \"%s\"\n", ENVIRON["OPEN_RUNTIMES_ENTRYPOINT"] }
' <<< "$manifest" > "$BUILD_DIR/Cargo.toml"
# Its versions hold, but for the types, which are the image's.
if [ -f "$BUILD_DIR/Cargo.lock" ]; then
    awk -v RS= -v ORS='\n\n' '!/name = "openruntimes-types-for-rust"/' "$BUILD_DIR/Cargo.lock" > src/Cargo.lock
fi

# Crates that are here already are taken before newer ones are asked for.
target=$(rustc --version --verbose | sed -n 's/^host: //p')
(cd src && cargo fetch --quiet --offline --target "$target" 2> /dev/null) ||
    (cd src && cargo fetch --target "$target") || exit $?

# What an earlier build has compiled of the same crates is there for this one.
compiled="$BUILD_CACHE_ROOT/cargo/compiled"
key=$(cat "$BUILD_DIR/Cargo.toml" src/Cargo.lock | sha256sum)
if [ "$key" = "$(cat "$compiled/key" 2> /dev/null)" ]; then
    cp -R --preserve=timestamps "$compiled/release" "$CARGO_TARGET_DIR/"
fi
# The function's own sources may be older, and yet others.
find "$BUILD_DIR" -name '*.rs' -exec touch {} +
touch src/server.rs
(cd src && cargo build --release --offline) || exit $?
cp "$CARGO_TARGET_DIR/release/rust_runtime" "$BUILD_DIR/rust_runtime"

if [ "$key" != "$(cat "$compiled/key" 2> /dev/null)" ]; then
    rm -rf "$compiled"
    mkdir -p "$compiled/release"
    (cd "$CARGO_TARGET_DIR" && find release -newer "$SERVER_DIR/src/server.rs" -type f ! -path '*handler*' \
        ! -path '*rust_runtime*' -exec cp --parents --preserve=timestamps {} "$compiled/" \;)
    echo "$key" > "$compiled/key"
fi
