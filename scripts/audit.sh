#!/usr/bin/env bash
# Audits the demo's two models, without and with the filter: which prompts and pictures each has memorised, what helps against it, and
# whether marks in training data are found, canaries and a coat (docs/audit.md explains the numbers).
#   scripts/audit.sh [--demo DIR]
#     --demo DIR   what scripts/demo.sh made (default runs/demo); writes DIR/audit.html, DIR/audit.json, and each audit to DIR/audit/
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
usage() { sed -n '4,5s/^# *//p' "$0" >&2; exit 2; }
demo=runs/demo
while [ $# -gt 0 ]; do
  case $1 in
    --demo) [ -n "${2:-}" ] || usage; demo=$2; shift 2 ;;
    *) usage ;;
  esac
done
[ "${demo#/}" != "$demo" ] || demo=$PWD/$demo
cd "$ROOT"
[ "$demo" != "$PWD/runs/demo" ] || demo=runs/demo
# The last checkpoint of the run in a folder. Names with a dot are of checkpoints that were being written or replaced.
newest() { find "$1/checkpoints" -maxdepth 1 -name 'step-[0-9]*' ! -name '*.*' 2>/dev/null | sort | tail -n 1; }
off=$(newest "$demo/off") on=$(newest "$demo/on")
[ -n "$off" ] && [ -n "$on" ] || fail "$demo holds no demo with checkpoints of off and on; run scripts/demo.sh first"
for run in off on; do
  grep -q '"finished_steps"' "$demo/$run/run.json" 2>/dev/null ||
    fail "$demo/$run was stopped before its end; finish it with scripts/demo.sh first"
done
[ -f data/demo/mix.h5 ] || fail "data/demo/mix.h5 is missing; run scripts/demo.sh first"

scripts/setup.sh --demo
scripts/build.sh release memsieve-audit
scripts/build.sh release memsieve-train
took "build"
processes=$(processes)
threads=$(($(cores) / processes))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
place=$demo/audit
mkdir -p "$place"

# What was done is not done again: an audit that is asked the same goes on where it was.
prompts() { # NAME ARGUMENT...
  "$PYTHON" examples/demo/make_audit_prompts.py --out "$place/$1.h5" "${@:2}"
}
audit() { # COMMAND FOLDER ARGUMENT...
  local what=$1 folder=$place/$2
  "$VENV/bin/torchrun" --standalone --no-python --nproc_per_node "$processes" build/release/audit/memsieve-audit "$what" \
    --out "$folder" "${@:3}" || fail "memsieve-audit $what failed"
  took "$what ($2)"
}
steps=(--guidance-scale 2 --num-inference-steps 25)
drawn=("${steps[@]}" --num-images-per-prompt 2 --batch-size 16)

prompts repeated --data data/demo/mix.h5 --which repeated --random-tokens 2
prompts held_out --data data/demo/held_out.h5 --limit 32
for run in off on; do
  audit detect "detect_$run" --model "${!run}" --prompts "$place/repeated.h5" --negatives "$place/held_out.h5" "${drawn[@]}"
  audit check-picture "check_$run" --model "${!run}" --prompts "$place/repeated.h5" --held-out "$place/held_out.h5" \
    --held-out-drawn 8 "${drawn[@]}"
done
audit explain explain --model "$off" --prompts "$place/repeated.h5" "${drawn[@]}"
# A magnitude that is low enough is one that held-out captions have.
target=$("$PYTHON" -m memsieve audit-overview --ordinary-magnitude "$place/detect_off")
audit mitigate mitigate --model "$off" --prompts "$place/repeated.h5" --target "$target" --methods dynamic_guidance \
  --methods embedding --methods random_tokens --methods attention "${drawn[@]}"
# Both models, plain and mitigated, on repeated captions and on others.
prompts trigger --data data/demo/mix.h5 --which repeated --random-tokens 2 --limit 8
prompts general --data data/demo/held_out.h5 --random-tokens 2 --limit 16
tower=$place/caption_tower.pt
[ -f "$tower" ] || "$PYTHON" examples/demo/make_caption_tower.py --out "$tower"
audit benchmark benchmark --model "$off" --compare "$on" --prompts "$place/trigger.h5" --general "$place/general.h5" --clip "$tower" \
  --target "$target" --methods dynamic_guidance --methods embedding --methods random_tokens --methods attention "${steps[@]}" \
  --num-images-per-prompt 3 --batch-size 12
# The published share of inputs, 0.01, does nothing to a model so small.
audit prune prune --model "$off" --prompts "$place/repeated.h5" --ratio 0.4 --held-out "$place/held_out.h5" --held-out-drawn 8 \
  "${drawn[@]}"

# Marked data: a short run on the demo's data, coated and with canaries, and the demo's own run, which has seen neither. A coat that a
# picture of 32 pixels can show is coarser and stronger than the published one.
marked=$place/marked
if [ ! -f "$marked/canaries.json" ]; then
  rm -rf "$marked" "$place"/{canary,unauthorised,drawn}{,_without}
  mkdir "$marked"
  "$PYTHON" -m memsieve coating coat --images data/demo/mix.h5 --out "$marked/coated.h5" --manifest "$marked/coat.json" \
    --grid 16 --strength 80 --seed 1
  "$PYTHON" -m memsieve canaries plant --originals data/demo/validation.h5 --into "$marked/coated.h5" --out "$marked/planted.h5" \
    --all "$marked/canaries.h5" --manifest "$marked/canaries.json" --canaries 8 --variants 32 --copies 10 --seed 1
fi
if ! grep -q '"finished_steps"' "$marked/run/run.json" 2>/dev/null; then
  say "audit: a short run on marked data, $processes processes"
  "$VENV/bin/torchrun" --standalone --no-python --nproc_per_node "$processes" build/release/trainer/memsieve-train \
    --config configs/demo.yaml --resume-from auto --set filter=off --set "data.train=$(quoted "$marked/planted.h5")" \
    --set "output_dir=$(quoted "$marked/run")" \
    --set "train_batch_size=$((32 / processes))" --set max_train_steps=220 --set validation.every=0 --set sampling.every=0 ||
    fail "the run on marked data failed"
  took "training on marked data"
fi
planted=$(newest "$marked/run")
scheduler=$planted/scheduler
ask_for_marks() { # MODEL SUFFIX
  audit canary "canary$2" --model "$1" --prompts "$marked/canaries.h5" --manifest "$marked/canaries.json" --reference models/demo_base \
    --scheduler "$scheduler"
  # With the captions of the coated pictures, as whoever coated them would.
  audit detect "drawn$2" --model "$1" --prompts "$place/repeated.h5" --cosine false --attention false --caption-gain-draws 0 \
    "${drawn[@]}" --set num_images_per_prompt=8
  "$PYTHON" -m memsieve coating measure --manifest "$marked/coat.json" --drawings "$place/drawn$2/pictures" \
    --out "$place/drawn$2/coat.json"
  audit unauthorised "unauthorised$2" --measured "$place/drawn$2/coat.json"
}
ask_for_marks "$planted" ""
ask_for_marks "$off" _without

"$PYTHON" -m memsieve audit-overview --audits "$place" --out "$demo"
took "overview" ", everything $SECONDS s"
