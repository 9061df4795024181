# Becomes nginx, configured for this site. The configuration holds the secret: only this sandbox's own user can read it.
source helpers/lifecycle/lib.sh
source src/configure.sh

# A child says that the port accepts, so that nginx itself is the main process.
announce() {
    until (exec 3<> /dev/tcp/127.0.0.1/3000) 2> /dev/null; do sleep 0.005; done
    [ -z "${OPEN_RUNTIMES_STARTUP_BEGAN:-}" ] || metric startup "$OPEN_RUNTIMES_STARTUP_BEGAN"
    echo "HTTP server successfully started!"
}

state=$(umask 077 && mktemp -d /tmp/static.XXXXXX)
configure "$state" > "$state/nginx.conf"
announce &
exec nginx -e stderr -c "$state/nginx.conf"
