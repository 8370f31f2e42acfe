#!/usr/bin/env bash
# Builds and runs the default suite: everything in release, then the tests labelled asan and tsan under those sanitizers.
#   scripts/run_tests.sh [release|asan|tsan|cuda|long]...      default: release asan tsan cuda; long: the tests left out
# cuda: compiles and links the GPU's kernels where nvcc is, and runs their tests, which a machine without a GPU skips.
# All parts run even if one fails. The last line says 'N passed, N failed'; JUnit files lie in build/<preset>/tests.xml.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}
parts=("$@")
((${#parts[@]})) || parts=(release asan tsan cuda)
build_failed=0

export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-second_deadlock_stack=1}
# UCX's hooks on madvise make the thread sanitizer crash at thread exit.
export UCX_MEM_MMAP_HOOK_MODE=none

# run PRESET TARGET [ctest arguments]
run() {
  local preset=$1 target=$2 launcher=()
  shift 2
  rm -f "build/$preset/tests.xml"
  echo "== $preset: build $target"
  if ! { cmake --preset "$preset" >/dev/null && cmake --build --preset "$preset" --target "$target" -j "$jobs"; }; then
    echo "== $preset: does not build" >&2
    build_failed=1
    return
  fi
  # g++ 12's thread sanitizer does not start where the kernel randomises mappings by more than 28 bits.
  if [[ $preset == tsan ]] && setarch "$(uname -m)" -R true 2>/dev/null; then
    launcher=(setarch "$(uname -m)" -R)
  fi
  echo "== $preset: ctest $*"
  "${launcher[@]}" ctest --test-dir "build/$preset" -j "$jobs" --output-on-failure --no-tests=error \
    --output-junit tests.xml "$@" || true
}

mkdir -p build
files=()
for part in "${parts[@]}"; do
  case $part in
    release) run release all -LE '^(long|gpu)$' ;;
    asan) run asan asan_tests -L '^asan$' -LE '^(long|gpu)$' ;;
    tsan) run tsan tsan_tests -L '^tsan$' -LE '^(long|gpu)$' ;;
    cuda)
      if ! command -v nvcc >/dev/null && [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
        echo "== cuda: there is no nvcc here: skipped"
        continue
      fi
      run cuda kernels_gpu_test -R '^kernels_gpu_test$' ;;
    long) run release all -L '^long$' ; part=release ;;
    *) echo "run_tests: unknown part '$part'; known: release asan tsan cuda long" >&2; exit 2 ;;
  esac
  files+=("build/$part/tests.xml")
done

python3 - "$build_failed" "${files[@]}" <<'PYTHON' | tee build/test-summary.txt
import os
import sys
import xml.etree.ElementTree as xml

total = failed = 0
for path in sys.argv[2:]:
    if not os.path.exists(path):
        print(f"{path}: no result")
        continue
    suite = xml.parse(path).getroot()
    bad = [case.get("name") for case in suite.iter("testcase") if case.get("status") in ("fail", "notrun")]
    count = int(suite.get("tests"))
    print(f"{path}: {count - len(bad)} of {count} passed" + "".join(f"\n  failed: {name}" for name in bad))
    total, failed = total + count, failed + len(bad)
if sys.argv[1] != "0":
    print("a part does not build")
    failed += 1
    total += 1
print(f"{total - failed} passed, {failed} failed")
PYTHON
grep -qx '[0-9]* passed, 0 failed' build/test-summary.txt
