source /usr/local/server/helpers/site/bundle.sh
bundle_if server/index.mjs
rm -rf server/node_modules
bundle server/index.mjs
