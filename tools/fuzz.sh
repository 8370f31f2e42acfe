#!/usr/bin/env bash
# Builds the fuzz targets with libFuzzer under the address and undefined-behaviour sanitizers, runs them one at a time,
# and prints a table. Fails if a target finds a fault. Targets that are named are the only ones built.
#   tools/fuzz.sh [-n] [SECONDS [TARGET...]]      default: 120 seconds each, all targets; -n: run what is built already
# In build/fuzz/findings/TARGET: the faulty inputs (crash-*, timeout-*, oom-*), log.txt, and in minimal/ the few inputs
# that reach code which the committed corpus does not. A fault's input, made small with -minimize_crash=1, goes to
# tests/data/corpus/TARGET under a name that says what it is, with a test in the room's own words.
set -euo pipefail
cd "$(dirname "$0")/.."
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1} UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

stat() { sed -n "s/^stat::$1: *//p" "$2" | tail -1; }

build() {
  cmake --preset fuzz >/dev/null
  cmake --build --preset fuzz -j "${JOBS:-$(nproc)}" --target "$@"
}

main() {
  local builds=1
  [[ ${1:-} != -n ]] || { builds=0 && shift; }
  local seconds=${1:-120}
  shift || true
  local target findings seeds seed faults failed=0 table targets=("$@")
  if ((${#targets[@]})); then
    ((!builds)) || build "${targets[@]}"
  else
    ((!builds)) || build fuzz_targets
    mapfile -t targets < <(find build/fuzz/fuzz -type f -executable -printf '%f\n' | sort)
  fi

  table=$(printf '%-26s %12s %8s %10s %12s %8s' target executions exec/s 'new inputs' 'of them kept' crashes)
  for target in "${targets[@]}"; do
    findings=build/fuzz/findings/$target
    seeds=tests/data/corpus/$target
    rm -rf "$findings"
    mkdir -p "$findings/found" "$findings/minimal"
    echo "== $target"
    nice "build/fuzz/fuzz/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="$findings/" "$findings/found" "$seeds" >"$findings/log.txt" 2>&1 || true
    cp "$seeds"/* "$findings/minimal"
    nice "build/fuzz/fuzz/$target" -merge=1 -timeout=10 "$findings/minimal" "$findings/found" \
      >"$findings/merge.txt" 2>&1 || true
    for seed in "$seeds"/*; do rm "$findings/minimal/$(basename "$seed")"; done
    faults=$(find "$findings" -maxdepth 1 -regex '.*/\(crash\|timeout\|oom\|leak\)-.*' | wc -l)
    ((faults == 0)) || failed=1
    table+=$'\n'$(printf '%-26s %12s %8s %10s %12s %8s' "$target" \
      "$(stat number_of_executed_units "$findings/log.txt")" "$(stat average_exec_per_sec "$findings/log.txt")" \
      "$(stat new_units_added "$findings/log.txt")" "$(find "$findings/minimal" -type f | wc -l)" "$faults")
  done
  echo "$table"
  return "$failed"
}

main "$@"; exit
