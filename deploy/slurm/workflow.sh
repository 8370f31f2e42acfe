#!/usr/bin/env bash
# The measurement of the recipe: record, load, slow decode down until it is full, let go, profile, dump. A request that
# warms up would be slowed down, too, with all others behind it: there is none.
cd "$(dirname "$0")" && source ./lib.sh
./z.record.sh start
./6.benchmark.sh --warmup-requests 0 >"$RUN_DIR/logs/benchmark.log" 2>&1 &
benchmark=$!
./7.slow_down.sh start
sleep "$SATURATE_S"
./7.slow_down.sh stop
sleep "$SETTLE_S"
./9.profile.sh
./z.record.sh dump
wait "$benchmark"
