# From sources to classes to a jar; sourced by the compile hook.

# find_sources EXTENSION...: sets `sources`, the function's files of that kind outside hidden folders.
find_sources() {
    local extension wanted=()
    for extension in "$@"; do wanted+=(-o -name "*$extension"); done
    mapfile -d '' sources < <(find "$BUILD_DIR" -mindepth 1 -name '.*' -prune -o -type f \( "${wanted[@]:1}" \) -print0)
}

# need_sources: ends the build where there are none.
need_sources() {
    [ ${#sources[@]} -gt 0 ] || { message_error "Error: No source file found for $OPEN_RUNTIMES_ENTRYPOINT."; exit 1; }
}

# class_path: the server's with its libraries, and every jar below the build's folder.
class_path() {
    local jars=("$SERVER_DIR"/src/*.jar)
    mapfile -d '' -O ${#jars[@]} jars < <(find "$BUILD_DIR" -name '*.jar' -print0 | sort -z)
    (IFS=: && printf '%s' "${jars[*]}")
}

# compile_java CLASSES: `sources` into the folder CLASSES, where classes that they need may be already. Texts are joined in
# place: the other way takes a function's first execution ten milliseconds.
compile_java() {
    javac -encoding UTF-8 -g -parameters -proc:full -XDstringConcat=inline -d "$1" -cp "$1:$(class_path)" "${sources[@]}"
}

# pack_classes CLASSES JAR SERVER: so that `java -jar JAR` starts the server with the function in it, too.
pack_classes() {
    printf 'Main-Class: %s\nClass-Path: ../server.jar\n' "$3" > "$1.manifest"
    jar --create --no-compress --file "$2" --manifest "$1.manifest" -C "$1" . || return $?
    rm -rf "$1" "$1.manifest"
}
