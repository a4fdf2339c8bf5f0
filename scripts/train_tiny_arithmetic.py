"""Train `tiny-arithmetic`, the model that ships in the repository, and write its folder and card.

    python scripts/train_tiny_arithmetic.py [FOLDER]      # some 12 minutes on two idle cores

Invariants
- Seeded, and trained on the train side of `rlp_datasets.arithmetic` alone; measured on its test split.
- Demonstrations slip: with probability `SLIP` an operation's ones digit is written one too large. Greedy decoding
  ignores so rare a mistake; sampling at temperature 1 reproduces it, so that samples of one prompt differ in reward.
- The loss is on the response only. Weights are float32, as safetensors.
"""

from __future__ import annotations

import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from rlp_datasets import DATASET_REGISTRY, Example
from rlp_datasets.arithmetic import Problem, training_problems
from rlp_datasets.template import r1_prompt, r1_response

FOLDER = Path(__file__).parents[1] / "sequence_processing" / "models" / "tiny-arithmetic"
SEED = 0
SLIP = 0.12  # share of operations whose ones digit a demonstration writes one too large
STEPS = 1400
THREADS = 2
BATCH = 64  # problems a step
POOL = 32  # batches drawn together and sorted by length, so that little is padding
LEARNING_RATE = 3e-3
VOCABULARY = 640  # at most: the problems' words need fewer
EOS = "<|endoftext|>"  # Qwen2's; pad too
CHAT_TEMPLATE = (  # its newlines stand in expressions: Jinja drops those that follow a tag
    "Think in <think> </think>, then answer in <answer> </answer>."
    "{% for message in messages %}{{ '\n' + message['role'] | capitalize + ': ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nAssistant: <think>' }}{% endif %}"
)


def demonstration(problem: Problem, chance: random.Random) -> str:
    """A response to the problem, with slips."""
    reasoning, answer = problem.reasoning(lambda digit: digit + (digit < 9 and chance.random() < SLIP))
    return r1_response(reasoning, str(answer))


def train_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE on the texts it will meet, with Qwen2's NFC and splits: `AutoTokenizer` gives every Qwen2 those.

    Each digit is a token of its own, and any NFC text survives encoding and decoding.
    """
    chance, problems = random.Random(SEED), islice(training_problems(SEED), 5000)
    texts = (r1_prompt(problem.question) + demonstration(problem, chance) for problem in problems)
    tokenizer = Qwen2Tokenizer(model_max_length=2048, clean_up_tokenization_spaces=False)
    tokenizer = tokenizer.train_new_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.06,  # near 1 / sqrt(width): from the usual 0.02 so narrow a model starts late
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def batches(tokenizer: Qwen2Tokenizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, is_response), both [BATCH, longest], padded on the right, rows of a batch similar in length."""
    chance, problems = random.Random(SEED), training_problems(SEED)
    while True:
        drawn = list(islice(problems, POOL * BATCH))
        prompts = tokenizer([r1_prompt(problem.question) for problem in drawn])["input_ids"]
        responses = tokenizer([demonstration(problem, chance) + EOS for problem in drawn])["input_ids"]
        pairs = sorted(zip(prompts, responses, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        starts = list(range(0, len(pairs), BATCH))
        chance.shuffle(starts)
        for start in starts:
            yield collate(pairs[start : start + BATCH], tokenizer.pad_token_id)


def collate(pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.full((len(pairs), longest), pad)
    is_response = torch.zeros((len(pairs), longest), dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        is_response[row, len(prompt) : end] = True
    return ids, is_response


def train(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer) -> None:
    """AdamW with a short warm-up and a linear decay. No attention mask is needed: padding follows all that counts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 100, (STEPS - step) / STEPS))
    model.train()
    begun = time.monotonic()
    for step, (ids, is_response) in enumerate(islice(batches(tokenizer), STEPS)):
        hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
        told = is_response[:, 1:]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[told]), ids[:, 1:][told])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}/{STEPS}: loss {loss.item():.3f}, {time.monotonic() - begun:.0f} s", flush=True)
    model.eval()


@dataclass(frozen=True)
class Figures:
    """Shares of the responses to held-out problems, from 0 to 1. right: the gold answer, in the template's form.
    closed: ends in `</answer>` and the end-of-text token."""

    right: float
    closed: float


@torch.inference_mode()
def measure(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, examples: Sequence[Example], do_sample: bool
) -> Figures:
    """One response to each example, greedy or from the untruncated distribution at temperature 1."""
    torch.manual_seed(SEED)
    warpers = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if do_sample else {}
    right = closed = 0
    for start in range(0, len(examples), 250):
        some = examples[start : start + 250]
        prompts = tokenizer([e.text for e in some], return_tensors="pt", padding=True, padding_side="left")
        ids = model.generate(**prompts, max_new_tokens=120, do_sample=do_sample, **warpers)
        responses = tokenizer.batch_decode(ids[:, prompts["input_ids"].shape[1] :])
        for example, response in zip(some, responses, strict=True):
            text, ended, _ = response.partition(EOS)
            closed += bool(ended) and text.endswith("</answer>")
            right += text.endswith(f"</think> <answer> {example.answer} </answer>")
    return Figures(right / len(examples), closed / len(examples))


CARD = """\
---
license: apache-2.0
library_name: transformers
---
# tiny-arithmetic

A Qwen2-architecture model of {parameters:,} float32 parameters that solves generated word problems with one or two
additions and subtractions of numbers to 99. It exists so that examples and tests have a real model without a network;
it can do nothing else.

    Think in <think> </think>, then answer in <answer> </answer>.
    User: {question}
    Assistant: <think>

is continued, greedily, with

    {response}

and the end-of-text token `{eos}`, which is also the pad token. The tokenizer is a byte-level BPE of
{vocabulary} tokens, each digit its own; it takes any Unicode text, and normalises it to NFC as all Qwen2 tokenizers
do. The context is 2,048 tokens, but training saw no more than some 150: what it says to longer prompts is noise. The
chat template writes the first line above, then each message as `Role: content`, and `Assistant: <think>` where a
response is to follow, so that one user message gives exactly the prompt above.

## Training

`python scripts/train_tiny_arithmetic.py` wrote this folder: {steps:,} steps of {batch} problems with AdamW, seed
{seed}, loss on the response only, on the train side of `arithmetic_r1_template` in `rlp_datasets`. {slip:.0%} of the
demonstrated operations slip by one, on purpose: greedy decoding does not repeat so rare a mistake, sampling does, and
the samples of one prompt differ.

## Figures

| | |
|---|---|
| held-out problems, none of whose (numbers, operations) stood in training | {problems:,} |
| right, greedy | {greedy.right:.1%} |
| right, sampled at temperature 1 | {sampled.right:.1%} |
| greedy responses that end in `</answer>` and the end-of-text token | {greedy.closed:.1%} |
| sampled responses that do | {sampled.closed:.1%} |
| training, wall time | {seconds:.0f} s |
| training, processor time of all threads | {cpu_seconds:.0f} s |
| machine | {machine} |
"""


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    tokenizer = train_tokenizer()
    model = new_model(tokenizer)
    wall, cpu = time.monotonic(), time.process_time()
    train(model, tokenizer)
    seconds, cpu_seconds = time.monotonic() - wall, time.process_time() - cpu

    test = list(DATASET_REGISTRY["arithmetic_r1_template"](split="test"))
    shown = next(problem for problem in training_problems(SEED) if len(problem.operations) == 2)
    card = CARD.format(
        parameters=model.num_parameters(),
        vocabulary=len(tokenizer),
        question=shown.question,
        response=r1_response(shown.reasoning()[0], str(shown.answer)).strip(),
        eos=EOS,
        steps=STEPS,
        batch=BATCH,
        seed=SEED,
        slip=SLIP,
        problems=len(test),
        greedy=measure(model, tokenizer, test, do_sample=False),
        sampled=measure(model, tokenizer, test, do_sample=True),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        machine=f"{THREADS} threads on {os.cpu_count()} {platform.machine()} cores, torch {torch.__version__}",
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
