# Compiles the function into a jar beside its sources.
PROVIDED_DEPENDENCIES="com.google.code.gson gson"
source helpers/dependencies.sh
source helpers/classes.sh

jar="$BUILD_DIR/java-runtime-1.0.0.jar"
rm -f "$jar"
fetch_dependencies || exit $?
echo "Compiling ..."
find_sources .java
need_sources
classes=$(mktemp -d)
compile_java "$classes" || exit $?
pack_classes "$classes" "$jar" io.openruntimes.java.Server || exit $?
