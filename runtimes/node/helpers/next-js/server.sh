source /usr/local/server/helpers/next-js/env.sh
source /usr/local/server/helpers/site/server.sh
if [ -e /usr/local/server/src/function/server.js ]; then
    serve next-js "node server.js"
else
    serve next-js
fi
