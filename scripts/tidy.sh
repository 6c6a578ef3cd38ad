#!/usr/bin/env bash
# Runs clang-tidy over our own sources: scripts/tidy.sh [FILE...] (default: all .cpp of lib, filters and trainer).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
command -v clang-tidy >/dev/null || fail "clang-tidy is missing; install the package clang-tidy"
[ -f build/release/compile_commands.json ] || scripts/build.sh release memsieve
if [ $# -gt 0 ]; then
  files=("$@")
else
  mapfile -t files < <(git ls-files --cached --others --exclude-standard 'lib/*.cpp' 'filters/*.cpp' 'trainer/*.cpp')
fi
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(compile_jobs)" clang-tidy --quiet -p build/release
say "tidy: ${#files[@]} files are clean"
