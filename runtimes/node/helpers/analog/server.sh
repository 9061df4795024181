source /usr/local/server/helpers/analog/env.sh
source /usr/local/server/helpers/site/server.sh
serve analog
