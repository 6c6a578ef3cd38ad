#!/usr/bin/env bash
# The demo: a small text-to-image model is fine-tuned twice on pictures of which a few are repeated many times, without the
# filter and with it; then a report compares what it draws.
#   scripts/demo.sh [--seed S] [--with-published] [--out DIR]
#     --seed S           seed of noise, timesteps and order (default 1)
#     --with-published   a third run with the published rule, for comparison
#     --out DIR          where the runs and the report go (default runs/demo; an earlier demo in there is replaced)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage() { sed -n '4,7s/^# *//p' "$0" >&2; exit 2; }
seed=1
out=runs/demo
published=no
while [ $# -gt 0 ]; do
  case $1 in
    --seed) [[ ${2:-} =~ ^[0-9]+$ ]] || usage; seed=$2; shift 2 ;;
    --out) [ -n "${2:-}" ] || usage; out=$2; shift 2 ;;
    --with-published) published=yes; shift ;;
    *) usage ;;
  esac
done
[ "${out#/}" != "$out" ] || out=$PWD/$out
cd "$ROOT"
[ "$out" != "$PWD/runs/demo" ] || out=runs/demo

# Only a folder that an earlier demo made is replaced; it carries this mark.
mark=$out/.made-by-demo
if [ -e "$out" ] && [ -n "$(ls -A "$out" 2>/dev/null)" ]; then
  [ -f "$mark" ] || fail "$out is not empty and was not made by this script; choose another folder with --out"
  say "demo: replacing the earlier demo in $out"
  rm -rf "${out:?}"/{off,on,published,report.html,report.png,summary.json,audit,audit.html,audit.json}
fi

scripts/setup.sh --demo
took "set-up"
mkdir -p "$out" || fail "cannot make the folder $out"
: >"$mark"
# The data need nothing of ours that is compiled, so they are made meanwhile.
making=$(mktemp -t memsieve-data.XXXXXX)
trap 'rm -f "$making"' EXIT
"$PYTHON" examples/demo/make_demo_data.py --out data/demo >"$making" 2>&1 &
data=$!
scripts/build.sh release memsieve-train || { kill "$data" 2>/dev/null || true; fail "the build failed"; }
took "build"
wait "$data" || { cat "$making" >&2; fail "making the data failed"; }
cat "$making"
took "data, beyond the build"

processes=$(processes)
threads=$(($(cores) / processes))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))

rows=$((32 / processes))
# The probe budget is counted over blocks of rows, which must fit into a process's share.
blocks=$((rows < 16 ? rows : 16))

# Trains run $1; the other arguments go to memsieve-train.
train() {
  local run=$1
  shift
  say "demo: run '$run', $processes processes"
  "$VENV/bin/torchrun" --standalone --no-python --nproc_per_node "$processes" build/release/trainer/memsieve-train \
    --set "seed=$seed" --set "output_dir=$(quoted "$out/$run")" --set "train_batch_size=$rows" \
    --set "sieve.block_rows=$blocks" "$@" ||
    fail "run '$run' failed"
  took "run '$run'"
}
train off --config configs/demo.yaml --set filter=off
train on --config configs/demo.yaml
[ $published = no ] || train published --config configs/demo_published.yaml
report=(--off "$out/off" --on "$out/on" --data data/demo --out "$out")
[ $published = no ] || report+=(--published "$out/published")
"$PYTHON" -m memsieve report "${report[@]}"
took "report" ", everything $SECONDS s"
