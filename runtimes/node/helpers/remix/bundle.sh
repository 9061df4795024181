source /usr/local/server/helpers/site/bundle.sh
bundle_if server/index.js
nest build
bundle build/server/index.js
