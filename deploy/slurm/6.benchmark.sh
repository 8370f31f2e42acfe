#!/usr/bin/env bash
# Loads the servers through the router; further flags go to `tandem bench_serving`.
cd "$(dirname "$0")" && source ./lib.sh
load_nodes
read -ra flags <<<"$BENCH_FLAGS"
client bench_serving --base-url "$ROUTER_URL" --disable-tqdm --output-file "$RUN_DIR/benchmark.jsonl" "${flags[@]}" "$@"
