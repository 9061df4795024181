source /usr/local/server/helpers/site/bundle.sh
bundle server/entry.mjs
