#!/bin/bash
# Unpacks a built function and starts its server: helpers/start.sh "<start command>".
set -e
cd /usr/local/server
source helpers/lifecycle/start.sh
start "${1:-bash helpers/server.sh}"
