source /usr/local/server/helpers/remix/env.sh
source /usr/local/server/helpers/site/server.sh
serve remix
