#!/usr/bin/env bash
# Makes a folder that tries memsieve on another machine with a GPU, which needs Python with torch but no compiler and no network:
# copy it there and start its run.sh. See docs/performance.md.
#   scripts/gpu_kit.sh [--out DIR] [--python-version 3.12]
#     --out DIR              default build/gpu_kit
#     --python-version X.Y   that machine's Python (default 3.12); for another than this environment's, packages are downloaded
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage() { sed -n '4,6s/^# *//p' "$0" >&2; exit 2; }
out=build/gpu_kit
version=3.12
while [ $# -gt 0 ]; do
  [ -n "${2:-}" ] || usage
  case $1 in
    --out) out=$2 ;;
    --python-version) version=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[ "${out#/}" != "$out" ] || [ "$out" = build/gpu_kit ] || out=$PWD/$out
cd "$ROOT"
scripts/setup.sh --demo
scripts/build.sh release memsieve-train memsieve-unet memsieve-bench-train-step memsieve-bench-overhead test_runtime
"$PYTHON" examples/demo/make_demo_data.py --out data/demo
exec "$PYTHON" bench/gpu_kit/make.py --out "$out" --python-version "$version"
