source /usr/local/server/helpers/angular/env.sh
source /usr/local/server/helpers/site/server.sh
serve angular
