source /usr/local/server/helpers/nuxt/env.sh
source /usr/local/server/helpers/site/server.sh
serve nuxt
