#!/bin/bash
# Builds a function: helpers/build.sh "<install command>". Sources from /mnt/code, the archive to /mnt/code.
set -e
cd /usr/local/server
source helpers/lifecycle/build.sh
build "${1:-}"
