# What nginx is told, made of the environment. Sourced.

RESOURCES_DIR=/mnt/resources

# digits NAME DEFAULT: the variable's value where that is a number.
digits() {
    local value=${!1:-}
    [[ $value =~ ^[0-9]{1,9}$ ]] && echo "$value" || echo "$2"
}

# is_true NAME DEFAULT
is_true() {
    local value=${!1:-$2}
    [ "${value,,}" = true ]
}

# digest TEXT: as nginx's secure_link_md5 writes it.
digest() {
    printf %s "$1" | md5sum | tr a-f A-F | basenc --base16 --decode --ignore-garbage | basenc --base64url | tr -d =
}

# The caller's credential. Digests are compared, so that the time it takes tells nothing of the secret.
authentication() {
    [ -n "${OPEN_RUNTIMES_SECRET:-}" ] || return 0
    local credential
    credential="Basic $(printf 'opr:%s' "$OPEN_RUNTIMES_SECRET" | base64 --wrap=0)"
    cat << END
        secure_link $(digest "$credential");
        secure_link_md5 \$http_authorization;
        if (\$secure_link != 1) {
            return 401 'Unauthorized. Provide correct "x-open-runtimes-secret" header.';
        }
END
}

# The page for what is not there: the site's fallback, or 404.
missing() {
    local fallback=${OPEN_RUNTIMES_STATIC_FALLBACK:-}
    fallback=${fallback#/}
    if [[ -z $fallback ]]; then
        echo '        error_page 403 404 =404 @missing;'
    elif [[ ! $fallback =~ ^[A-Za-z0-9._/@+-]+$ || /$fallback/ == */../* || ! -f $FUNCTION_DIR/$fallback ]]; then
        echo "The fallback $fallback is no file of the site: paths that are not there are answered by 404." >&2
        echo '        error_page 403 404 =404 @missing;'
    else
        cat << END
        error_page 403 404 =200 @fallback;
        location @fallback {
            try_files /$fallback =404;
        }
END
    fi
}

# Descriptors and sizes of files that are asked for often; their content is in the kernel's page cache.
file_cache() {
    if is_true OPEN_RUNTIMES_STATIC_MEMORY_CACHE_ENABLED true; then
        local ttl
        ttl=$(digits OPEN_RUNTIMES_STATIC_CACHE_TTL 86400)
        echo "    open_file_cache max=$(digits OPEN_RUNTIMES_STATIC_CACHE_CAPACITY 4096)" \
            "inactive=$(digits OPEN_RUNTIMES_STATIC_CACHE_TTI "$ttl")s;"
        echo "    open_file_cache_valid ${ttl}s;"
    fi
}

cache_header() {
    local name=${OPEN_RUNTIMES_CACHE_HEADER:-CDN-Cache-Control}
    [[ $name =~ ^[A-Za-z0-9-]+$ ]] || name=CDN-Cache-Control
    echo "$name"
}

# configure STATE_DIR
configure() {
    local resources=$SERVER_DIR/src
    [ ! -f $RESOURCES_DIR/404.html ] || resources=$RESOURCES_DIR
    local symlinks="on from=\$document_root"
    ! is_true OPEN_RUNTIMES_STATIC_FOLLOW_SYMLINKS false || symlinks=off
    local processes
    processes=$(digits OPEN_RUNTIMES_CPUS 1)
    [ "$processes" != 0 ] || processes=auto
    cat << END
daemon off;
user root;
worker_processes $processes;
pid $1/nginx.pid;
error_log stderr warn;
events {
    worker_connections 4096;
}
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    charset utf-8;
    charset_types text/css text/javascript text/plain text/xml application/javascript application/json application/manifest+json application/xml image/svg+xml;
    access_log off;
    server_tokens off;
    sendfile on;
    tcp_nopush on;
    # The caller decides when a connection ends.
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    client_body_temp_path $1/body;
    proxy_temp_path $1/proxy;
    fastcgi_temp_path $1/fastcgi;
    uwsgi_temp_path $1/uwsgi;
    scgi_temp_path $1/scgi;
    gzip on;
    gzip_static on;
    gzip_vary on;
    gzip_proxied any;
    gzip_min_length 1024;
    gzip_types text/css text/javascript text/plain text/xml application/javascript application/json application/manifest+json application/wasm application/xml image/svg+xml;
    variables_hash_bucket_size 128;
$(file_cache)
    # As it was sent, so that nothing decoded gets into a header; one slash, so that it names no other host.
    map \$request_uri \$raw_path {
        "~^/*(?<path>[^?]*)" /\$path;
    }
    server {
        listen 3000 default_server backlog=4096;
$([ ! -e /proc/net/if_inet6 ] || echo '        listen [::]:3000 default_server backlog=4096;')
        root $FUNCTION_DIR;
        disable_symlinks $symlinks;
        absolute_redirect off;
        add_header $(cache_header) "public, max-age=36000" always;
        default_type text/plain;
$(authentication)
        set \$kind "";
        if (-d \$request_filename) {
            set \$kind folder;
        }
        if (\$uri !~ /\$) {
            set \$kind "\$kind without slash";
        }
        if (\$kind = "folder without slash") {
            return 308 \$raw_path/\$is_args\$args;
        }
        location = /__opr/health {
            return 200 OK;
        }
        location = /__opr/timings {
            types { }
            disable_symlinks off;
            open_file_cache off;
            alias $TELEMETRY_DIR/timings.txt;
        }
        location ~ /\\.env {
            error_page 404 @missing;
            return 404;
        }
        location ~ /\$ {
            default_type application/octet-stream;
            try_files \${uri}index.html =404;
        }
        location / {
            default_type application/octet-stream;
            try_files \$uri \$uri.html =404;
        }
$(missing)
        location @missing {
            root $resources;
            disable_symlinks off;
            try_files /404.html =404;
        }
    }
}
END
}
