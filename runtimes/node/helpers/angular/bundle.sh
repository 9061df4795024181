source /usr/local/server/helpers/site/bundle.sh
bundle server/server.mjs
