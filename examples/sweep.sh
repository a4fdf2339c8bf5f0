#!/usr/bin/env bash
# A checkpoint sweep: three checkpoints of a LoRA adapter over tiny-arithmetic, made on the spot, beside the model itself.
# Each answers the same prompts, with the same names for its draws. No server, no network, no GPU is needed.
#   bash examples/sweep.sh [FOLDER]      # checkpoints and report.html in FOLDER, by default sweep
set -euo pipefail

out=${1:-sweep}
run() { printf '\n\033[1m$ %s\033[0m\n' "$*" >&2; "$@"; }

mkdir -p "$out"
run python "$(dirname "$0")/train_lora.py" "$out"

jobs=()
for step in 0 2 4 8; do
    adapter=(); [ "$step" = 0 ] || adapter=(--adapter "$out/step-$step")
    jobs+=("$(run seqproc submit -d -q --model tiny-arithmetic "${adapter[@]}" --name "step-$step" --labels sweep=lora \
        --dataset arithmetic_r1_template --split test --num-prompts 64 -G 8 --seed 42 --reward math_answer)")
done
for job in "${jobs[@]}"; do run seqproc wait "$job"; done

run seqproc report "${jobs[@]}" --html "$out/report.html"
