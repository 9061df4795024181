# Compiles the function into a jar beside its sources.
PROVIDED_DEPENDENCIES="com.google.code.gson gson"
source helpers/dependencies.sh

jar="$BUILD_DIR/java-runtime-1.0.0.jar"
rm -f "$jar"
fetch_dependencies || exit $?
echo "Compiling ..."
mapfile -d '' sources < <(find "$BUILD_DIR" -name '.*' -prune -o -name '*.java' -print0)
if [ ${#sources[@]} -eq 0 ]; then
    message_error "Error: No .java file found."
    exit 1
fi
classes=$(mktemp -d)
# Texts are joined in place: the other way takes a function's first execution ten milliseconds.
javac -encoding UTF-8 -g -parameters -proc:full -XDstringConcat=inline -d "$classes" -cp "$(class_path)" "${sources[@]}" || exit $?
# So that `java -jar` starts the server with the function in it, too.
printf 'Main-Class: io.openruntimes.java.Server\nClass-Path: ../server.jar\n' > "$classes.manifest"
jar --create --no-compress --file "$jar" --manifest "$classes.manifest" -C "$classes" . || exit $?
rm -rf "$classes" "$classes.manifest"
