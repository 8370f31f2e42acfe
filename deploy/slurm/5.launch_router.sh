#!/usr/bin/env bash
# Waits until all servers are ready, then starts the router on the first node.
cd "$(dirname "$0")" && source ./lib.sh
load_nodes
flags=(--host 0.0.0.0 --port "$ROUTER_PORT" --pd-disaggregation --decode "$DECODE_URL")
for group in "${!PREFILL_URL[@]}"; do
  wait_ready "prefill_$group" "${PREFILL_URL[group]}"
  flags+=(--prefill "${PREFILL_URL[group]}" "${PREFILL_KV_PORT[group]}")
done
wait_ready decode "$DECODE_URL"
run_on router "$FIRST_NODE" "$RUN_DIR/logs/launch_router.log" "$TANDEM" router "${flags[@]}" &
wait_ready router "$ROUTER_URL"
