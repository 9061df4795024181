source /usr/local/server/helpers/astro/env.sh
source /usr/local/server/helpers/site/server.sh
serve astro
