#!/usr/bin/env bash
# Profiles a few steps of the decode servers; may be repeated. Traces lie in $RUN_DIR/profile.
cd "$(dirname "$0")" && source ./lib.sh
load_nodes
client profile --router "$ROUTER_URL" --role decode --num-steps "$PROFILE_STEPS" --output-dir "$RUN_DIR/profile" "$@"
