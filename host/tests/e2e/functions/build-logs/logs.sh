#!/bin/bash
# logs.sh BLOCKS: so many blocks of 7 x 131072 characters without a line break, between a first and a last line.
echo 'First log'
for ((block = 0; block < $1; block++)); do
    head -c $((7 * 131072)) /dev/zero | tr '\0' 1
done
echo
echo 'Last log'
