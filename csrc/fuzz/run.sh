#!/usr/bin/env bash
# Builds the fuzz targets in BUILD_DIR and runs each for SECONDS on its committed corpus; one line per target.
# What a run finds in new inputs stays in BUILD_DIR/corpus, a crashing input in BUILD_DIR/findings.
#
#   csrc/fuzz/run.sh BUILD_DIR SECONDS [TARGET...]
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 BUILD_DIR SECONDS [TARGET...]" >&2
  exit 2
fi
build=$1 seconds=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$build/findings"
if ! CC=${CC:-clang} cmake -S "$here/../.." -B "$build" -DPILOT_BUILD_FUZZ=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo >"$build/cmake.log" 2>&1; then
  cat "$build/cmake.log" >&2
  exit 1
fi
if ! cmake --build "$build" -j "${JOBS:-$(nproc)}" >"$build/build.log" 2>&1; then
  cat "$build/build.log" >&2
  exit 1
fi

if [ $# -eq 0 ]; then
  for source in "$here"/fuzz_*.c; do set -- "$@" "$(basename "$source" .c)"; done
fi
failed=0
for target in "$@"; do
  seeds=$here/corpus/${target#fuzz_}
  found=$build/corpus/$target
  log=$build/$target.log
  mkdir -p "$found"
  # New inputs go to the first directory; the committed one is only read. The outer limit is for a target that hangs.
  if timeout $((seconds + 120)) "$build/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=4096 \
    -artifact_prefix="$build/findings/$target-" -print_final_stats=1 "$found" "$seeds" >"$log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
    echo "$target: ok, $runs runs in $seconds s from $(find "$seeds" -type f | wc -l) seeds, ${edges:-cov: ?}"
  else
    echo "$target: FAILED, input in $build/findings, log in $log"
    tail -40 "$log" >&2
    failed=1
  fi
done
exit $failed
