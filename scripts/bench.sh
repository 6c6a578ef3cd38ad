#!/usr/bin/env bash
# Measures. The last line is one JSON object.
#   scripts/bench.sh overhead [--rounds N] [--steps N]
#     step time of the plain loop (`plain_ms`), and how many times as long a step takes with the published filter (`published`)
#     and with ours (`ours`): medians over interleaved rounds, on the demo's model and data
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
[ "${1:-}" = overhead ] || { sed -n '3,5s/^# *//p' "$0" >&2; exit 2; }
shift
scripts/setup.sh --demo
scripts/build.sh release memsieve-bench-overhead
"$PYTHON" tools/make_demo_data.py --out data/demo
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(cores)}
exec build/release/bench/memsieve-bench-overhead "$@"
