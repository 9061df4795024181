source /usr/local/server/helpers/tanstack-start/env.sh
source /usr/local/server/helpers/site/server.sh
cd /usr/local/server/src/function
if [ -e server/server.js ]; then
    serve tanstack-start
elif grep -q "\"node-listener\"" nitro.json 2> /dev/null; then
    serve tanstack-start-listener
else
    serve tanstack-start "node server/index.mjs"
fi
