#!/usr/bin/env bash
# Builds the benchmark programs in release, runs each briefly and writes tables for docs/benchmarks.md.
#   tools/run_benchmarks.sh [program or serving]...     default: all of bench/*_bench.cc, then serving
# serving: `tandem up` with the embedded model, and bench_serving against its router at rising concurrency.
# Results: build/bench/<name>.txt (as printed) and build/bench/tables.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/bench
jobs=${JOBS:-$(nproc)}
limit=${BENCH_LIMIT_S:-900}   # seconds for one program

names=("$@")
if ((${#names[@]} == 0)); then
  for source in bench/*_bench.cc; do names+=("$(basename "$source" .cc)"); done
  names+=(serving)
fi
targets=()
for name in "${names[@]}"; do
  if [[ $name == serving ]]; then targets+=(tandem); else targets+=("$name"); fi
done

scripts/install-deps.sh
cmake --preset release >/dev/null
cmake --build --preset release --target "${targets[@]}" -j "$jobs" >/dev/null
mkdir -p "$out"

uses_google_benchmark() { grep -q 'include <benchmark/benchmark.h>' "bench/$1.cc"; }

run_program() {
  local name=$1 command=("build/release/bench/$1")
  if uses_google_benchmark "$name"; then
    command+=(--benchmark_min_time=0.3 "--benchmark_out=$out/$name.json" --benchmark_out_format=json)
  fi
  echo "== ${command[*]}"
  rm -f "$out/$name.json"
  echo "\$ ${command[*]}" >"$out/$name.txt"
  timeout "$limit" "${command[@]}" 2>&1 | tee -a "$out/$name.txt"
}

run_serving() {
  local log=$out/up.log url="" pid
  build/release/tandem up >"$log" 2>&1 &
  pid=$!
  # shellcheck disable=SC2064  # the pid of now
  trap "kill -INT $pid 2>/dev/null || true" RETURN
  for ((i = 0; i < 1200; ++i)); do
    url=$(sed -n 's/^router *ready *\(http[^ ]*\).*/\1/p' "$log")
    [[ -n $url ]] && break
    kill -0 "$pid" 2>/dev/null || { cat "$log" >&2; return 1; }
    sleep 0.1
  done
  [[ -n $url ]] || { echo "tandem up was not ready in 120 s" >&2; cat "$log" >&2; return 1; }
  rm -f "$out/serving.jsonl" "$out/serving.txt"
  for concurrency in 1 8 32 64; do
    local command=(build/release/tandem bench_serving --base-url "$url" --dataset-name random --random-input-len 256
      --random-output-len 64 --random-range-ratio 1 --num-prompts $((concurrency * 4 < 32 ? 32 : concurrency * 4))
      --max-concurrency "$concurrency" --flush-cache --seed 1 --disable-tqdm --output-file "$out/serving.jsonl")
    echo "\$ ${command[*]}" | tee -a "$out/serving.txt"
    timeout "$limit" "${command[@]}" 2>&1 | tee -a "$out/serving.txt"
  done
  kill -INT "$pid"
  wait "$pid" || true
}

failed=()
for name in "${names[@]}"; do
  if [[ $name == serving ]]; then
    run_serving || failed+=("$name")
  else
    run_program "$name" || failed+=("$name")
  fi
done
tools/bench_tables.py "$out" "${names[@]}" >"$out/tables.md"
echo "== tables: $out/tables.md"
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
