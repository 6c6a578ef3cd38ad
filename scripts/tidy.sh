#!/usr/bin/env bash
# Runs clang-tidy over our own sources: scripts/tidy.sh [FILE...] (default: those of all rooms but the tests, eight of a room at once)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
command -v clang-tidy >/dev/null || fail "clang-tidy is missing; install the package clang-tidy"
[ -x "$PYTHON" ] || fail "no Python environment at $VENV; run scripts/setup.sh first"
# A file of one's own is looked up as it is; of all of them, torch's headers would take most of an hour.
unity=OFF
[ $# -gt 0 ] || unity=ON
cmake --preset tidy -DMEMSIEVE_PYTHON="$PYTHON" -DCMAKE_UNITY_BUILD=$unity >/dev/null || fail "configuring preset 'tidy' failed"
# The one header that is generated.
cmake --build build/tidy --target trainer/event.pb.h >/dev/null || fail "generating trainer/event.pb.h failed"
files=("$@")
checks=()
if [ $# -eq 0 ]; then
  rooms="($ROOT|$ROOT/build/tidy)/(lib|filters|diffusion|runtime|trainer|audit|python|bench|examples)"
  mapfile -t files < <(sed -n 's/^ *"file": "\(.*\)",*$/\1/p' build/tidy/compile_commands.json | grep -E "^$rooms/" | grep -v '\.pb\.cc$')
  checks=(--checks=-bugprone-suspicious-include)  # eight sources at once are a file that includes them
fi
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(compile_jobs)" clang-tidy --quiet -p build/tidy ${checks[@]+"${checks[@]}"}
say "tidy: ${#files[@]} files are clean"
