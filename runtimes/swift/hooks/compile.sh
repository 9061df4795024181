# Builds the server with the function in it, where the start finds it: only the function is compiled.
echo "Compiling ..."
if grep --quiet --no-messages '\.package(' "$BUILD_DIR/Package.swift"; then
    message_error "Error: Package.swift names packages, which are not built here. Put their sources beside the function's."
    exit 1
fi
cd "$BUILD_DIR"
root=.
if [ -d Sources ]; then root=Sources; fi
mapfile -d '' sources < <(find "$root" -name '*.swift' -not -name Package.swift -not -path '*/.*' -print0 | sort --zero-terminated)
if [ ${#sources[@]} -eq 0 ]; then
    message_error "Error: No Swift file found."
    exit 1
fi
server=$SERVER_DIR/src/build
objects=("$SWIFT_STATIC/$(uname -m)/swiftrt.o" "$server/function.o" "$server/OpenRuntimes.o")
swiftc -c -parse-as-library -module-name Runtime -whole-module-optimization -O -static-stdlib -swift-version 5 \
    -module-cache-path "$server/modules" -I "$server" -Xfrontend -import-module -Xfrontend OpenRuntimes \
    -o "$server/function.o" "${sources[@]}" "$SERVER_DIR/src/entry.swift" || exit $?
swift-autolink-extract "${objects[@]:1}" -o "$server/libraries" || exit $?
gcc -pie -s -Wl,--no-warnings -o Runtime -L "$SWIFT_STATIC" -Wl,--start-group "${objects[@]}" @"$server/libraries" -Wl,--end-group \
    @"$SWIFT_STATIC/static-stdlib-args.lnk" || exit $?
cd "$SERVER_DIR"
