# What a function depends on: jars in its folder, and what its Gradle files name; sourced by the compile hook.

REPOSITORY="${OPEN_RUNTIMES_MAVEN_REPOSITORY:-https://repo1.maven.org/maven2/}"

# fetch_dependencies: into `libs`, with what they depend on themselves. Gradle is not in the image: its files are only read.
fetch_dependencies() {
    local files=("$BUILD_DIR"/*.gradle*) wanted=() folder line status=0
    while [ ${#files[@]} -gt 0 ] && IFS= read -r line; do
        if [[ $line =~ ^(api|implementation|compileOnly|runtimeOnly)[\ \(]+[\"\']([^:\"\']+):([^:\"\']+):([^:@\"\'\$]+)[\"\']\)?$ ]]; then
            wanted+=("$(printf '<dependency org="%s" name="%s" rev="%s"/>' "${BASH_REMATCH[@]:2}")")
        elif [[ ! $line =~ ^(test[A-Z].*|.*[\ \(](fileTree|files)\(.*|.*[\ \(](fileTree|files) .*)$ ]]; then
            message_error "Error: Dependencies are read in the form implementation 'group:artifact:version', which is not: $line"
            return 1
        fi
    done < <(dependency_lines "${files[@]}")
    [ ${#wanted[@]} -gt 0 ] || return 0
    folder=$(mktemp -d)
    printf '<ivysettings><settings defaultResolver="maven"/><resolvers>%s</resolvers></ivysettings>' \
        "<ibiblio name=\"maven\" m2compatible=\"true\" root=\"$REPOSITORY\"/>" > "$folder/settings.xml"
    {
        echo '<ivy-module version="2.0"><info organisation="function" module="function"/>'
        echo '<configurations><conf name="default"/></configurations><dependencies defaultconfmapping="*->default">'
        printf '%s\n' "${wanted[@]}"
        # These are the image's.
        printf '<exclude org="%s" module="%s" matcher="exact"/>\n' $PROVIDED_DEPENDENCIES
        echo '</dependencies></ivy-module>'
    } > "$folder/ivy.xml"
    java -jar /usr/share/java/ivy.jar -warn -settings "$folder/settings.xml" -ivy "$folder/ivy.xml" \
        -cache "$BUILD_CACHE_ROOT/ivy" -types jar bundle -retrieve "$BUILD_DIR/libs/[artifact]-[revision].[ext]" || status=$?
    rm -rf "$folder"
    [ $status -eq 0 ] || message_error \
        "Error: Dependencies could not be fetched from $REPOSITORY. Put their jars beside the sources, or set OPEN_RUNTIMES_MAVEN_REPOSITORY to a repository within reach."
    return $status
}

# dependency_lines FILE...: what stands in blocks named `dependencies`, a line each.
dependency_lines() {
    sed -E 's,(^|[[:space:]])//.*,,; s/[{};]/\n&\n/g' "$@" | awk '
        { gsub(/^[ \t]+|[ \t;]+$/, "") }
        depth == 0 && $0 == "dependencies" { is_named = 1; next }
        $0 == "{" { if (depth > 0 || is_named) depth++; is_named = 0; next }
        $0 == "}" { if (depth > 0) depth--; next }
        depth == 1 && $0 != "" { print }
        $0 != "" { is_named = 0 }'
}
