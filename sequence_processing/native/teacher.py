"""Teacher forcing with the kernels: each distinct prompt once, its responses behind it, no padding anywhere.

A token's arithmetic is the decoder's: sequences that were sampled with the kernels are measured here bit for bit as
they were then.
"""

from collections.abc import Sequence

import numpy as np
import torch

from sequence_processing import distribution
from sequence_processing.distribution import Measured, Policy
from sequence_processing.native.decoder import tables_of, tokens_of
from sequence_processing.native.forward import Forward
from sequence_processing.native.ops import PAGE, Tokens
from sequence_processing.native.pages import Pages

_LOGITS_AT_ONCE = 1 << 24


def teacher_force(
    forward: Forward, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], policy: Policy
) -> list[Measured]:
    """The four quantities of each response to the prompt at its place, each [len(response)]."""
    pages = Pages(forward.weights)
    places: dict[tuple[int, ...], int] = {}
    which = np.array([places.setdefault(tuple(ids), len(places)) for ids in prompts])
    distinct = list(places)
    taken = [pages.take_prompt(ids) for ids in distinct]
    fed = [ids[:-1] for ids in responses]  # a response's last token predicts nothing
    own = [pages.take(-(-len(ids) // PAGE)) for ids in fed]
    tables = tables_of([t.pages for t in taken] + [taken[p].pages + o for p, o in zip(which, own, strict=True)])
    known = [t.known for t in taken]
    lengths = np.array([len(ids) for ids in distinct])
    tokens = _joined(
        tokens_of(distinct, tables, known=known),
        tokens_of(fed, tables, prefix=lengths[which], first=len(distinct)),
    )
    # A response's first token is predicted by its prompt's last, which comes once for all of them.
    lasts = np.cumsum(lengths - np.array(known)) - 1
    behind = np.arange(int(lasts[-1]) + 1, len(tokens.ids))
    hidden = forward.hidden(tokens, pages.store, np.concatenate([lasts, behind]))
    rows = _predicting(which, responses, len(distinct))
    targets = torch.tensor([t for ids in responses for t in ids], dtype=torch.int64)
    size = max(1, _LOGITS_AT_ONCE // forward.weights.head.weight.shape[0])
    parts = [
        distribution.measure(forward.logits(hidden[rows[start : start + size]]), targets[start : start + size], policy)
        for start in range(0, max(len(rows), 1), size)
    ]
    return distribution.join(parts).split([len(ids) for ids in responses])


def _joined(first: Tokens, second: Tokens) -> Tokens:
    return Tokens(
        ids=np.concatenate([first.ids, second.ids]),
        sequences=np.concatenate([first.sequences, second.sequences]),
        prefix=np.concatenate([first.prefix, second.prefix]),
        own=np.concatenate([first.own, second.own]),
        tables=first.tables,
    )


def _predicting(which: np.ndarray, responses: Sequence[Sequence[int]], prompts: int) -> torch.Tensor:
    """For each token of each response, the row of hidden states that predicts it: prompts' lasts, then the others."""
    rows, next_row = [], prompts
    for prompt, ids in zip(which.tolist(), responses, strict=True):
        if ids:
            rows += [prompt, *range(next_row, next_row + len(ids) - 1)]
            next_row += len(ids) - 1
    return torch.tensor(rows, dtype=torch.int64)
