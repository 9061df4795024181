# Becomes the server, with the flags that suit this image's node.
if [ "$OPEN_RUNTIMES_SERVER_COMMAND" = "node src/server.js" ]; then
    exec node $(< node-flags) src/server.js
fi
exec bash -c "$OPEN_RUNTIMES_SERVER_COMMAND"
