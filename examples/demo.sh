#!/usr/bin/env bash
# The main job, as a newcomer would type it. No server, no network, no GPU is needed.
set -euo pipefail

run() { printf '\n\033[1m$ %s\033[0m\n' "$*" >&2; "$@"; }

out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
job=$(run seqproc submit --model tiny-arithmetic --dataset arithmetic_r1_template --split test \
      --num-prompts 16 -G 4 --seed 42 --shard-size 4 --name demo)
run seqproc show "$job" --prompt 0
run seqproc fetch "$job" -o "$out/demo" --format jsonl

printf '\n\033[1m$ python\033[0m\n'
python - "$job" <<'PYTHON'
import sys
from jobs import Client

sequences, logprobs = Client().get(sys.argv[1]).to_batched()
B, G, length = sequences.sequences.shape
print(f"sequences.sequences: [B={B}, G={G}, total_len={length}]")
for g, text in enumerate(sequences.responses_text[0]):
    tokens = sequences.gen_lens[0][g]
    print(f"  {tokens:3d} tokens  log p = {logprobs.sequence_logprobs[0][g]:8.3f} nats  "
          f"mean entropy {logprobs.entropies[0][g].mean():.3f} nats  …{text[-28:]!r}")
PYTHON
echo
echo "Look further: seqproc list · seqproc status $job · seqproc --help"
echo "See it in the browser: seqproc up --open"
