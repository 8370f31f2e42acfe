#!/usr/bin/env bash
# Starts the decode group.
cd "$(dirname "$0")" && source ./lib.sh
load_nodes
launch_group decode 0 "$DECODE_NODE_LIST"
