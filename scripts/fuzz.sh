#!/usr/bin/env bash
# Feeds what the readers of other people's files and messages take to libFuzzer, under AddressSanitizer and UBSan, and prints a
# table: inputs, coverage, crashes. Exit code 1 if there was a crash; its input is kept under build/fuzz/crashes.
#   scripts/fuzz.sh [--seconds N] [--seed N] [--jobs N] [--corpus DIR] [TARGET...]
#     --seconds   for each target (default 60)
#     --seed      of libFuzzer (default: another one each time)
#     --jobs      targets at once (default 1)
#     --corpus    where inputs are kept that reached something new, and taken up again (default build/fuzz/corpus)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
command -v clang++ >/dev/null || fail "clang++ is missing, which libFuzzer comes with; run: apt-get install clang libclang-rt-dev"
[ -x "$PYTHON" ] || fail "no Python environment at $VENV; run scripts/setup.sh first"
MEMSIEVE_COMPILE_JOBS=$(compile_jobs) exec "$PYTHON" tests/fuzz/run.py "$@"
