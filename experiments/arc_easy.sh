#!/usr/bin/env bash
# ARC-Easy in cloze form, SmolLM2-135M, 112 of the training rows (5 %), one run folder a seed.
# Resumable: the same command goes on where it stopped.
#   experiments/arc_easy.sh DATA_FOLDER [RUNS_FOLDER] [SEED ...]
# DATA_FOLDER holds ARC-Easy's train.jsonl and validation.jsonl. On two cores a seed takes an hour and
# a half or so; OUTER_STEPS and DRAWS make it shorter.
set -euo pipefail
data=${1:?usage: experiments/arc_easy.sh DATA_FOLDER [RUNS_FOLDER] [SEED ...]}
runs=${2:-runs}
shift $(($# < 2 ? $# : 2))
for seed in "${@:-0}"; do
  nacd distill --model smollm2 \
    --data "$data/train.jsonl" --heldout "$data/validation.jsonl" --choices cloze \
    --max-tokens 64 --budget 112 --batch-size 8 --epochs 1 --no-shuffle --tune-rates 1e-3 2e-3 4e-3 \
    --engine one-sided --outer-steps "${OUTER_STEPS:-30}" --check-every 10 --check-trainings 2 --trainings "${DRAWS:-5}" \
    --seed "$seed" --out "$runs/arc_easy-$seed"
done
