#!/bin/bash
# Makes the archive of classes that the server starts from: archive.sh FOLDER, which holds a built function. Lets the server
# answer once in each way, and end.
set -euo pipefail
cd /usr/local/server
cp -R "$1/." src/function/
export OPEN_RUNTIMES_SECRET=secret OPEN_RUNTIMES_HEADERS={}

# ask METHOD ACTION BODY: prints the status.
ask() {
    exec 3<> /dev/tcp/127.0.0.1/3000
    printf '%s /?a=b HTTP/1.1\r\nhost: localhost:3000\r\nx-action: %s\r\nx-open-runtimes-secret: secret\r\n' "$1" "$2" >&3
    printf 'x-open-runtimes-timeout: 5\r\nconnection: close\r\ncontent-length: %s\r\n\r\n%s' "${#3}" "$3" >&3
    head -c 12 <&3
    exec 3>&-
}

sed '/SharedArchiveFile/d' src/server.args > /tmp/server.args
java -XX:ArchiveClassesAtExit=/usr/local/server/src/server.jsa -Xlog:cds=error -Xlog:cds+dynamic=error @/tmp/server.args &
server=$!
until (exec 3<> /dev/tcp/127.0.0.1/3000) 2> /dev/null; do sleep 0.05; done
for status in "$(ask GET json '')" "$(ask POST json '{"a": [1, 2.5, null]}')" "$(ask POST text text)" "$(ask POST throw '')"; do
    case "$status" in "HTTP/1.1 200" | "HTTP/1.1 500") ;; *) exit 1 ;; esac
done
kill $server
wait $server
test -s src/server.jsa
rm -rf src/function /tmp/server.args
