source /usr/local/server/helpers/site/bundle.sh
bundle handler.js
