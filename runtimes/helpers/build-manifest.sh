#!/bin/bash
# Lists the files of a build's output as JSON, where OPEN_RUNTIMES_BUILD_MANIFEST names a file for it:
# {"version":1,"files":["index.html"]}. Works on the current directory; always succeeds.

manifest="${OPEN_RUNTIMES_BUILD_MANIFEST:-}"
[ -n "$manifest" ] || exit 0
max_files="${OPEN_RUNTIMES_BUILD_MANIFEST_MAX_FILES:-10000}"
[[ $max_files =~ ^[0-9]+$ ]] || max_files=10000

helpers="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$helpers/lifecycle/lib.sh"

# json TEXT: as a JSON string. Bytes are kept as they are, so that UTF-8 stays UTF-8.
json() {
    local text=$1 code
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    for code in {1..31}; do
        printf -v character "\\x$(printf %x "$code")"
        printf -v escape '\\u%04x' "$code"
        text=${text//"$character"/$escape}
    done
    printf '"%s"' "$text"
}

encode() {
    local file separator= count=0
    printf '{"version":1,"files":['
    while [ "$count" -lt "$max_files" ] && IFS= read -r -d '' file; do
        [ "$file" != "./${manifest#./}" ] && [ "$file" != "./${manifest#./}.tmp" ] || continue
        printf '%s' "$separator"
        json "${file#./}"
        separator=,
        count=$((count + 1))
    done < <(find . -name node_modules -prune -o -type f ! -name code.sqfs ! -name code.tar ! -name code.tar.gz \
        ! -name code.gz -print0 | sort -z)
    printf ']}\n'
    echo "$count" >&3
}

if ! mkdir -p "$(dirname "$manifest")" 2> /dev/null; then
    message_warning "Build manifest skipped: manifest directory could not be created."
    exit 0
fi
trap 'rm -f "$manifest.tmp"' EXIT
if ! count=$({ encode > "$manifest.tmp"; } 3>&1 2> /dev/null); then
    message_warning "Build manifest warning: failed to encode manifest, continuing without it."
elif ! mv -f "$manifest.tmp" "$manifest" 2> /dev/null; then
    message_warning "Build manifest warning: failed to write manifest, continuing without it."
else
    message "Build manifest written. ($count files)"
fi
exit 0
