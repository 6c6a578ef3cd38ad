#!/usr/bin/env bash
# Brings about faults in runs of a tiny model (kill -9, SIGSTOP, a full disk, truncated files), resumes them, compares the end with that
# of a run that nothing happened to, and prints a table. Everything is on this machine, in a folder of its own that is removed.
# Exit code 1 if a promise of docs/reliability.md was broken.
#   scripts/faults.sh [--kills N] [--each N] [--seed N] [--steps N]
#     --kills   trials of kill -9 (default 10)
#     --each    trials of each other fault (default 3)
#     --seed    of what happens when (default 1)
#     --steps   of a run (default 200)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
scripts/setup.sh
scripts/build.sh release memsieve-train
exec "$PYTHON" tests/python/faults.py "$@"
