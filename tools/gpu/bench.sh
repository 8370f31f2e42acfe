#!/usr/bin/env bash
# On a GPU machine: one line per kernel and shape, with its share of the machine's ceilings.
#   tools/gpu/bench.sh DIR [FILTER]     DIR: what tools/gpu/pack.sh made
set -uo pipefail
bin=$(cd "${1:?usage: tools/gpu/bench.sh DIR [FILTER]}" && pwd)
out=${OUT:-build/gpu}
mkdir -p "$out"
export LD_LIBRARY_PATH=$bin/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
nvidia-smi --query-gpu=name --format=csv,noheader
echo "commit $(cat "$bin/commit")"
timeout 200 "$bin/kernels_gpu_bench" "${2:-}" 2>&1 | tee "$out/bench.txt"
