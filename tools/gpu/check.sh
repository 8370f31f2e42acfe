#!/usr/bin/env bash
# On a GPU machine, in a checkout: kernels against the oracle, the trained model against its reference, a server.
#   tools/gpu/check.sh DIR       DIR: what tools/gpu/pack.sh made. Logs go to $OUT, or build/gpu.
set -uo pipefail
bin=$(cd "${1:?usage: tools/gpu/check.sh DIR}" && pwd)
out=${OUT:-build/gpu}
mkdir -p "$out"
export LD_LIBRARY_PATH=$bin/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
built_in=$(cat "$bin/built-in")
if [[ ! -e $built_in ]]; then
  mkdir -p "$(dirname "$built_in")"
  ln -s "$PWD" "$built_in"
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
echo "commit $(cat "$bin/commit")"
failed=0
# run SECONDS NAME command...: the end of the log where it failed.
run() {
  local limit=$1 name=$2 status=0
  shift 2
  if [[ ! -e $1 && ! -e ${3:-} ]]; then
    echo "== $name: not packed"
    return
  fi
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  if ((status != 0)); then
    failed=1
    echo "== $name: FAILED ($status)"
    grep -E 'FAILED|Failure|error|GPU' "$out/$name.log" | head -30
    tail -n 5 "$out/$name.log"
  else
    echo "== $name: passed"
    grep -E '^\[  (PASSED|SKIPPED)' "$out/$name.log" | tail -n 3
  fi
}
run 240 kernels "$bin/kernels_gpu_test"
run 200 model "$bin/model_gpu_test"
run 200 rebalance "$bin/engine_gpu_rebalance_test" --gtest_filter='*TwoGpus*:GpuDigest*'
run 200 rebalance-on-one-gpu "$bin/engine_gpu_rebalance_test" --gtest_filter='*OneGpu*'
run 100 serving python3 "$bin/smoke.py" "$bin/tandem" models/tiny
exit "$failed"
