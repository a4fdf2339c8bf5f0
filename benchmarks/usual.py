"""The usual pattern: `model.generate` on padded batches, then a second forward for log-probabilities and entropies.

What most training scripts do, written plainly and without mistakes: 32 rows a batch, each batch decoding until its
longest row ends; then all rows in one padded matrix, `tf_rows` at a time through the model, full float32 logits.
It measures two of the four quantities; at temperature 1 and top_p 1 the other two are the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from benchmarks.workload import Workload

GEN_ROWS, TF_ROWS = 32, 8
_PAD = 0
_NO_EOS = (
    1 << 30
)  # no token: `generate` then pads rows that are done, as it does after a real EOS, and ends none itself


@dataclass(frozen=True)
class Row:
    """One measured sequence. Both tensors float32 [len(response_ids)], nats."""

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: torch.Tensor
    entropies: torch.Tensor


class ForcedLengths(StoppingCriteria):
    """Ends row r when it has lengths[r] new tokens."""

    def __init__(self, prompt_tokens: int, lengths: torch.Tensor) -> None:
        self.prompt_tokens = prompt_tokens
        self.lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] - self.prompt_tokens >= self.lengths


@torch.no_grad()
def run(
    model: Any, workload: Workload, seed: int, gen_rows: int = GEN_ROWS, tf_rows: int = TF_ROWS
) -> tuple[list[Row], float, float]:
    """All rows of `workload`, the responses of a prompt side by side; seconds of generating, and of measuring."""
    torch.manual_seed(seed)
    begin = time.perf_counter()
    sequences = generate(model, workload, gen_rows)
    generated = time.perf_counter()
    rows = measure(model, sequences, tf_rows)
    return rows, generated - begin, time.perf_counter() - generated


def generate(model: Any, workload: Workload, gen_rows: int = GEN_ROWS) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) token ids of each row, drawn from the model's own distribution."""
    found: list[tuple[list[int], list[int]]] = []
    at_once = max(1, gen_rows // workload.G)
    for start in range(0, len(workload.prompts), at_once):
        prompts = workload.prompts[start : start + at_once]
        lengths = [n for group in workload.lengths[start : start + at_once] for n in group]
        ids, mask = _left_padded(prompts, model.device)
        width = ids.shape[1]
        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_return_sequences=workload.G,
            max_new_tokens=max(lengths),
            pad_token_id=_PAD,
            eos_token_id=_NO_EOS,
            use_cache=True,
        )
        forced = StoppingCriteriaList([ForcedLengths(width, torch.tensor(lengths, device=model.device))])
        out = model.generate(ids, attention_mask=mask, generation_config=settings, stopping_criteria=forced).tolist()
        for r, (row, length) in enumerate(zip(out, lengths, strict=True)):
            found.append((prompts[r // workload.G], row[width : width + length]))
    return found


@torch.no_grad()
def measure(model: Any, sequences: list[tuple[list[int], list[int]]], tf_rows: int = TF_ROWS) -> list[Row]:
    """Second forward: prompts padded on the left to the longest, responses on the right."""
    P, T = max(len(p) for p, _ in sequences), max(len(r) for _, r in sequences)
    ids = torch.full((len(sequences), P + T), _PAD)
    mask = torch.zeros_like(ids)
    for r, (prompt, response) in enumerate(sequences):
        whole = slice(P - len(prompt), P + len(response))
        ids[r, whole], mask[r, whole] = torch.tensor(prompt + response), 1
    logprobs, entropies = [], []
    for start in range(0, len(ids), tf_rows):
        x, m = ids[start : start + tf_rows].to(model.device), mask[start : start + tf_rows].to(model.device)
        positions = (m.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=x, attention_mask=m, position_ids=positions, use_cache=False).logits
        lp, entropy = logprobs_and_entropies(logits[:, :-1], x[:, 1:])
        del logits
        logprobs.append(lp[:, P - 1 :].cpu())
        entropies.append(entropy[:, P - 1 :].cpu())
    lps, ents = torch.cat(logprobs), torch.cat(entropies)
    return [Row(p, r, lps[i, : len(r)], ents[i, : len(r)]) for i, (p, r) in enumerate(sequences)]


def logprobs_and_entropies(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `targets` [...] under all of `logits` [..., V] in float32, held at once: plain, and hungry for memory."""
    logs = torch.log_softmax(logits.float(), dim=-1)
    return logs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(logs.exp() * logs).sum(-1)


def _left_padded(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), _PAD)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :], mask[i, width - len(prompt) :] = torch.tensor(prompt), 1
    return ids.to(device), mask.to(device)
