# Compiles the function into a jar beside its sources.
PROVIDED_DEPENDENCIES="com.google.code.gson gson
    org.jetbrains.kotlin kotlin-stdlib org.jetbrains.kotlin kotlin-stdlib-common
    org.jetbrains.kotlin kotlin-stdlib-jdk7 org.jetbrains.kotlin kotlin-stdlib-jdk8
    org.jetbrains.kotlinx kotlinx-coroutines-core org.jetbrains.kotlinx kotlinx-coroutines-core-jvm"
source helpers/dependencies.sh
source helpers/classes.sh

jar="$BUILD_DIR/kotlin-runtime-1.0.0.jar"
rm -f "$jar"
fetch_dependencies || exit $?
echo "Compiling ..."
find_sources .kt .java
need_sources
classes=$(mktemp -d)
java @src/compiler.args -java-parameters -d "$classes" -cp "$(class_path)" "${sources[@]}" || exit $?
find_sources .java
[ ${#sources[@]} -eq 0 ] || compile_java "$classes" || exit $?
pack_classes "$classes" "$jar" io.openruntimes.kotlin.Server || exit $?
