source /usr/local/server/helpers/site/bundle.sh
bundle server/index.mjs
