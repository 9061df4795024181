source /usr/local/server/helpers/sveltekit/env.sh
source /usr/local/server/helpers/site/server.sh
serve sveltekit
