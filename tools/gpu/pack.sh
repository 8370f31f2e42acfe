#!/usr/bin/env bash
# Puts what a GPU machine needs to run the checks into one folder: stripped programs of build/cuda and the libraries
# that they load, but for the C and C++ run-time libraries.
#   tools/gpu/pack.sh DIR        then, on the GPU machine, in a checkout: tools/gpu/check.sh DIR
set -euo pipefail
cd "$(dirname "$0")/../.."
to=${1:?usage: tools/gpu/pack.sh DIR}
mkdir -p "$to/lib"
programs=(tandem bench/parallel_gpu_exchange_bench bench/kv_gpu_handover_bench
  tests/kernels/kernels_gpu_test tests/model/model_gpu_test
  tests/engine/engine_gpu_rebalance_test bench/kernels_gpu_bench)
for program in "${programs[@]}"; do
  [[ -e build/cuda/$program ]] || { echo "pack: build/cuda/$program is not built: left out" >&2; continue; }
  strip -o "$to/$(basename "$program")" "build/cuda/$program"
  ldd "build/cuda/$program" | awk '$3 ~ /^\// {print $3}'
done | sort -u | grep -vE '/(libc|libm|libstdc\+\+|libgcc_s|ld-linux[^/]*)\.so' | while read -r library; do
  strip -o "$to/lib/$(basename "$library")" "$library"
done
# The tests look for their data where they were built.
pwd >"$to/built-in"
cp tools/gpu/check.sh tools/gpu/bench.sh tools/gpu/smoke.py "$to/"
git rev-parse HEAD >"$to/commit"
du -sh "$to"
