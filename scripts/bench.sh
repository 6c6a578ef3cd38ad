#!/usr/bin/env bash
# Measures. The last line is one JSON object, but for detection.
#   scripts/bench.sh overhead [--rounds N] [--steps N]
#     step time of the plain loop (`plain_ms`), and how many times as long a step takes with the published filter (`published`)
#     and with ours (`ours`): medians over interleaved rounds, on the demo's model and data
#   scripts/bench.sh train-step [--config FILE | --unet sd15_quarter|sd15 [--latents N] [--rule ours|published|plain]]
#       [--batch N] [--processes N] [--set a.b=c]... [--rounds N] [--steps N]
#     images/s, milliseconds per part and peak memory of our training step: of a configuration (the demo's by default), or of a UNet
#     with random weights on synthetic latents; --batch counts the rows of all processes
#   scripts/bench.sh compare-python [--cases demo,sd15_quarter] [--rounds N] [--compile none|demo|all] [--precision no|bf16]
#       [--batch N] [--apart]
#     our step against the same step in Python (torch, diffusers): `speedup` = images/s of ours over Python's
#   scripts/bench.sh python-overhead [--rounds N] [--steps N] [--whole-steps N]
#     what the Python module costs beside the same calls from C++: `overhead` = the difference over a step of the quarter-width SD 1.5
#   scripts/bench.sh detection [--quick] [--scenario S] [--rule R] [--seed N] [--pictures N] [--plan | --table | --base epsilon|flow]
#       [--again]
#     what the rules find and spare: makes the runs of docs/detection.md that are not done yet, goes on with one that was stopped,
#     and writes the page; --plan tells what is done and how long the rest takes, --quick tries it on two scenarios in ten minutes
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
usage() { sed -n '3,19s/^# *//p' "$0" >&2; exit 2; }

# prepare PROGRAM [demo]: builds it, and makes the demo's data if they are wanted
prepare() {
  scripts/setup.sh ${2:+--demo}
  scripts/build.sh release "$1"
  [ -z "${2:-}" ] || "$PYTHON" examples/demo/make_demo_data.py --out data/demo
}

overhead() {
  prepare memsieve-bench-overhead demo
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(cores)}
  exec build/release/bench/memsieve-bench-overhead "$@"
}

compare_python() {
  local demo=demo
  [[ " $*" != *--cases* || " $*" =~ --cases[=\ ][^\ ]*demo ]] || demo=
  prepare memsieve-bench-train-step $demo
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(cores)}
  exec "$PYTHON" bench/compare_python.py "$@"
}

python_overhead() {
  prepare memsieve-bench-sieve-steps
  scripts/build.sh release memsieve_python
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(cores)}
  exec "$PYTHON" bench/python_overhead.py "$@"
}

train_step() {
  local config=configs/demo.yaml unet= latents= rule=ours batch= processes=1 pass=() case
  while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || usage
    case $1 in
      --config) config=$2 ;;
      --unet) unet=$2 ;;
      --latents) latents=$2 ;;
      --rule) rule=$2 ;;
      --batch) batch=$2 ;;
      --processes) processes=$2 ;;
      --set | --rounds | --steps) pass+=("$1" "$2") ;;
      *) usage ;;
    esac
    shift 2
  done
  [[ $processes =~ ^[1-9][0-9]*$ && ${batch:-1} =~ ^[1-9][0-9]*$ ]] || usage
  if [ -n "$unet" ]; then batch=${batch:-4}; elif [ "$config" = configs/demo.yaml ]; then batch=${batch:-32}; fi
  [ $((${batch:-$processes} % processes)) -eq 0 ] ||
    fail "train-step: --batch $batch cannot be divided among --processes $processes; make it a multiple"
  local demo= rows=$((${batch:-0} / processes))
  [[ -n $unet || $config != configs/demo* ]] || demo=demo
  prepare memsieve-bench-train-step $demo
  if [ -n "$unet" ]; then
    latents=${latents:-$([ "$unet" = sd15 ] && echo 64 || echo 32)}
    case=data/bench/$unet-$latents-$rows
    "$PYTHON" bench/make_case.py --unet "$unet" --latents "$latents" --batch "$rows" --out "$case"
    config=$case/$rule.yaml
  elif [[ $config = configs/demo.yaml && $rows -lt 16 ]]; then
    pass=(--set "sieve.block_rows=$rows" "${pass[@]}")  # a block is never larger than what a process sees
  fi
  [ -z "$batch" ] || pass=(--set "train_batch_size=$rows" "${pass[@]}")
  local threads=$(($(cores) / processes))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
  local command=(build/release/bench/memsieve-bench-train-step --config "$config" "${pass[@]}")
  [ "$processes" -gt 1 ] || exec "${command[@]}"
  exec "$VENV/bin/torchrun" --standalone --no-python --nproc_per_node "$processes" "${command[@]}"
}

detection() {
  local given=("$@") build=yes
  while [ $# -gt 0 ]; do
    case $1 in
      --plan | --table | --help | -h) build=; shift ;;
      --quick | --again) shift ;;
      --scenario | --rule | --seed | --pictures | --base) [ $# -gt 1 ] || usage; shift 2 ;;
      *) usage ;;
    esac
  done
  if [ -n "$build" ]; then prepare memsieve-train demo; else scripts/setup.sh; fi
  PYTHONPATH=bench:examples/demo:$PYTHONPATH exec "$PYTHON" -m detection --processes "$(processes)" --cores "$(cores)" "${given[@]}"
}

case ${1:-} in
  overhead) shift; overhead "$@" ;;
  train-step) shift; train_step "$@" ;;
  compare-python) shift; compare_python "$@" ;;
  python-overhead) shift; python_overhead "$@" ;;
  detection) shift; detection "$@" ;;
  *) usage ;;
esac
