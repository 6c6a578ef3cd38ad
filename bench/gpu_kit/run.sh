#!/bin/sh
# Tries memsieve on this machine in at most 8 minutes. Needs Python with torch, and no network; see docs/performance.md.
#   run.sh [--out DIR] [--python PY] [--quick] [--parts NAME,NAME...]
#     --out DIR     where results.json and log.txt go (default: results, beside this file)
#     --python PY   the Python that holds torch (default python3)
#     --quick       every part shortened, so that a CPU gets through in about 3 minutes
#     --parts       only these parts
python=python3
count=$#
while [ "$count" -gt 0 ]; do
  if [ "$1" = --python ]; then
    [ -n "${2:-}" ] || { echo "run.sh: --python wants a program" >&2; exit 2; }
    python=$2
    shift 2
    count=$((count - 2))
  else
    set -- "$@" "$1"
    shift
    count=$((count - 1))
  fi
done
exec "$python" "$(dirname "$0")/run.py" "$@"
