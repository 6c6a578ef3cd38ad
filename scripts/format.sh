#!/usr/bin/env bash
# Checks the layout of our C++ with clang-format: scripts/format.sh [--fix]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
command -v clang-format >/dev/null || fail "clang-format is missing; install the package clang-format"
mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.cpp' '*.h')
case ${1:-} in
  --fix) clang-format -i "${files[@]}" && say "format: ${#files[@]} files laid out" ;;
  '') clang-format --dry-run -Werror "${files[@]}" && say "format: ${#files[@]} files are well laid out" ;;
  *) fail "unknown option '$1'; usage: scripts/format.sh [--fix]" ;;
esac
