"""Given sequences to measure, and checks that what came out is what was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.workload import Workload
from benchmarks.wrong import Wrong
from sequence_processing import BatchedSequences, LogprobResults


def given(workload: Workload, vocab_size: int, device: torch.device | str = "cpu") -> BatchedSequences:
    """The workload's prompts with responses of random tokens, as a caller brings them."""
    generator = torch.Generator().manual_seed(0)
    width = max(len(p) + max(g) for p, g in zip(workload.prompts, workload.lengths, strict=True))
    ids = torch.zeros(len(workload.prompts), workload.G, width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for b, (prompt, lengths) in enumerate(zip(workload.prompts, workload.lengths, strict=True)):
        for g, n in enumerate(lengths):
            response = torch.randint(vocab_size, (n,), generator=generator)
            ids[b, g, : len(prompt) + n] = torch.cat([torch.tensor(prompt), response])
            mask[b, g, : len(prompt) + n] = 1
    return BatchedSequences(
        sequences=ids.to(device),
        prompt_lens=[len(p) for p in workload.prompts],
        gen_lens=workload.lengths,
        attention_masks=mask.to(device),
        responses_text=[[""] * workload.G for _ in workload.prompts],
    )


def check_lengths(lengths: list[int], workload: Workload) -> None:
    """`Wrong` unless the rows, the responses of a prompt side by side, have the lengths that were forced."""
    if lengths != workload.flat_lengths:
        raise Wrong(f"{sum(lengths)} tokens came out where {workload.tokens} were asked for, or in other rows.")


def check_results(results: LogprobResults, workload: Workload) -> None:
    """`Wrong` unless all four quantities are there for every token, and finite."""
    columns = (results.logprobs, results.entropies, results.sampling_logprobs, results.sampling_entropies)
    rows = zip(*([row for group in column for row in group] for column in columns), strict=True)
    for four, length in zip(rows, workload.flat_lengths, strict=True):
        check_row(four, length)


def check_row(four: Iterable[Any], length: int) -> None:
    """`Wrong` unless each of a row's four quantities has `length` values, all finite."""
    for values in map(torch.as_tensor, four):
        if len(values) != length:
            raise Wrong(f"A response of {length} tokens has {len(values)} values of a measurement.")
        if not torch.isfinite(values).all():
            raise Wrong("A measurement of a token that the model can say is not finite.")
