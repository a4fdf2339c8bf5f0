"""Between the [B, G] grid that users hold and the flat rows that are computed: taken apart, checked, put together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sequence_processing.containers import BatchedSequences, LogprobResults, MicroBatch
from sequence_processing.distribution import Measured
from sequence_processing.model import CausalModel
from sequence_processing.pairs import Pair, Scored
from sequence_processing.prompts import checked_ids


def _check_shapes(sequences: BatchedSequences) -> None:
    shape = tuple(sequences.sequences.shape)
    if len(shape) != 3 or tuple(sequences.attention_masks.shape) != shape:
        raise ValueError(
            f"sequences and attention_masks must both be [B, G, total_len], not {list(shape)} and "
            f"{list(sequences.attention_masks.shape)}."
        )
    for name in ("prompt_lens", "gen_lens"):
        if len(getattr(sequences, name)) != shape[0]:
            raise ValueError(f"{name} has {len(getattr(sequences, name))} entries for {shape[0]} prompts.")
    for b, gen_lens in enumerate(sequences.gen_lens):
        if len(gen_lens) != shape[1]:
            raise ValueError(f"gen_lens[{b}] has {len(gen_lens)} entries for {shape[1]} responses.")


def pairs_of(sequences: BatchedSequences, vocab_size: int) -> list[list[Pair]]:
    """Prompt and response tokens of each row; `ValueError` naming the row if it cannot be read."""
    _check_shapes(sequences)
    ids, masks = sequences.sequences.tolist(), sequences.attention_masks.tolist()
    pairs = []
    for b, (prompt_len, gen_lens) in enumerate(zip(sequences.prompt_lens, sequences.gen_lens, strict=True)):
        group = []
        for g, gen_len in enumerate(gen_lens):
            mask, length = masks[b][g], prompt_len + gen_len
            start = mask.index(1) if 1 in mask else 0
            if sum(mask[start : start + length]) != sum(mask):
                raise ValueError(
                    f"Row [{b}][{g}]: the attention mask has holes or marks more than prompt_lens + gen_lens = "
                    f"{length} tokens; a row must be one unbroken run, padded on the left or the right."
                )
            if sum(mask) != length:
                raise ValueError(f"Row [{b}][{g}]: the mask marks {sum(mask)} tokens, but the lengths say {length}.")
            if prompt_len < 1:
                raise ValueError(f"Row [{b}][{g}]: a prompt needs at least one token to predict the response from.")
            row = checked_ids(ids[b][g][start : start + length], vocab_size, f"row [{b}][{g}]")
            group.append(Pair(row[:prompt_len], row[prompt_len:]))
        pairs.append(group)
    return pairs


def check_fits(model: CausalModel, pairs: Sequence[Pair]) -> None:
    """`ValueError` if a row is longer than the model's context."""
    longest = max((p.length for p in pairs), default=0)
    if model.context is not None and longest > model.context:
        raise ValueError(f"A sequence has {longest} tokens, more than the model's context of {model.context}.")


def results_of(measured: Sequence[Measured], sizes: Sequence[int], with_grad: bool) -> LogprobResults:
    """Measurements in row order to the [B][G] lists of `LogprobResults`."""
    flat = iter(measured)
    grid = [[next(flat) for _ in range(size)] for size in sizes]
    logprobs = [[m.logprobs for m in group] for group in grid]
    entropies: Any = [[m.entropies if with_grad else array(m.entropies) for m in group] for group in grid]
    names = grid[0][0].diagnostics if grid and grid[0] else {}
    sums: Any = [[row.sum() if with_grad else float(row.double().sum()) for row in group] for group in logprobs]
    return LogprobResults(
        logprobs=logprobs,
        entropies=entropies,
        sequence_logprobs=sums,
        sampling_logprobs=[[m.sampling_logprobs for m in group] for group in grid],
        sampling_entropies=[[array(m.sampling_entropies) for m in group] for group in grid],
        diagnostics={name: [[array(m.diagnostics[name]) for m in group] for group in grid] for name in names},
    )


def micro_batch_of(sequences: BatchedSequences, part: tuple[Scored, torch.Tensor]) -> MicroBatch:
    """Measurements of some of the rows of `sequences`, which are counted prompt by prompt, and their zero."""
    scored, zero = part
    places = [(b, g) for b, gen_lens in enumerate(sequences.gen_lens) for g in range(len(gen_lens))]
    rows, measured = [places[i] for i, _ in scored], [m for _, m in scored]
    names = measured[0].diagnostics if measured else {}
    sampled = sequences.sampling_pass
    return MicroBatch(
        rows=rows,
        logprobs=[m.logprobs for m in measured],
        entropies=[m.entropies for m in measured],
        sequence_logprobs=[m.logprobs.sum() for m in measured],
        sampling_logprobs=[m.sampling_logprobs for m in measured],
        sampling_entropies=[array(m.sampling_entropies) for m in measured],
        old_logprobs=None if sampled is None else [sampled.logprobs[b][g] for b, g in rows],
        zero=zero,
        diagnostics={name: [array(m.diagnostics[name]) for m in measured] for name in names},
    )


def array(values: torch.Tensor) -> np.ndarray:
    """Values on the host."""
    return values.cpu().numpy()
