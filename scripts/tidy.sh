#!/usr/bin/env bash
# Runs clang-tidy over our own sources: scripts/tidy.sh [FILE...] (default: all .cpp of the library and the rooms above it).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
command -v clang-tidy >/dev/null || fail "clang-tidy is missing; install the package clang-tidy"
[ -x "$PYTHON" ] || fail "no Python environment at $VENV; run scripts/setup.sh first"
cmake --preset tidy -DMEMSIEVE_PYTHON="$PYTHON" >/dev/null || fail "configuring preset 'tidy' failed"
# The one header that is generated.
cmake --build build/tidy --target trainer/event.pb.h >/dev/null || fail "generating trainer/event.pb.h failed"
if [ $# -gt 0 ]; then
  files=("$@")
else
  mapfile -t files < <(git ls-files --cached --others --exclude-standard {lib,filters,diffusion,runtime,trainer}/'*.cpp')
fi
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(compile_jobs)" clang-tidy --quiet -p build/tidy
say "tidy: ${#files[@]} files are clean"
