#!/usr/bin/env bash
# Starts the prefill groups, each one step over its nodes.
cd "$(dirname "$0")" && source ./lib.sh
load_nodes
for group in "${!PREFILL_NODE_LIST[@]}"; do launch_group prefill "$group" "${PREFILL_NODE_LIST[group]}"; done
