"""The decode loop's only view of a model: add prompts, step, drop finished rows.

A `Decoder` returns the logits of the next token of each live row, [rows, V], in the model's own type. Faster ways
plug in behind this interface; each must give these logits up to rounding.
"""

import logging
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import torch
from transformers import Cache, DynamicCache

from sequence_processing.config import HeadDtype
from sequence_processing.forwards import one_forward
from sequence_processing.head import Head
from sequence_processing.model import CausalModel
from sequence_processing.native.decoder import NativeDecoder
from sequence_processing.native.serve import forward_for
from sequence_processing.prefill import head_for, next_logits, prefill
from sequence_processing.slots import SlotDecoder, refusal

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """Live rows in a fixed order; used within one call of the engine, in eval mode and without gradient."""

    @property
    def refills(self) -> bool:
        """Whether `add` may be called while there are live rows."""
        ...

    @property
    def independent_rows(self) -> bool:
        """Whether a row's logits are the same bit for bit whatever the other rows."""
        ...

    def add(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> torch.Tensor:
        """Take distinct prompts: `repeats[0]` rows of the first, and so on, behind the live rows.

        Logits [sum(repeats), V] of the new rows.
        """
        ...

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append `tokens` int64 [rows] and return the next logits [rows, V], valid until the next call."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but `rows`, an ascending int64 index tensor."""
        ...


def decoder_for(
    model: CausalModel, longest: int, *, head_dtype: HeadDtype = "auto", deterministic: bool = False
) -> Decoder:
    """The decoder that serves this model for rows that reach at most `longest` tokens.

    `deterministic`: chosen as for the longest rows that the model can have, so that a row's decoder does not depend on
    the rows beside it. `head_dtype` as in `GenerationConfig`, where the kernels do not serve; they know no float64.
    """
    kernels = head_dtype != "float64"
    if kernels and (native := forward_for(model, longest, deterministic=deterministic)) is not None:
        return NativeDecoder(native)
    longest = model.context or longest if deterministic else longest
    head = head_for(model, head_dtype)
    if (reason := model.recomputed(longest)) is not None:
        log.info("%s: every token recomputes its row.", reason)
        return RecomputeDecoder(model, head)
    if (reason := refusal(model)) is not None:
        name = type(model.base).__name__
        log.info("%s %s: new rows wait until the batch has ended, and its cache is copied at every step.", name, reason)
        return CacheDecoder(model, head)
    return SlotDecoder(model, head)


class CacheDecoder:
    """The model's own modules and a `DynamicCache`: prompts left-padded, each prefilled once for its samples."""

    refills = False
    independent_rows = False

    def __init__(self, model: CausalModel, head: Head | None = None) -> None:
        self._model = model
        self._head = head
        self._cache: Cache = DynamicCache()
        self._mask = torch.empty(0)  # [rows, cached tokens], 0 on padding
        self._positions = torch.empty(0)  # [rows, 1], of the next token

    def add(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> torch.Tensor:
        prefilled = prefill(self._model, self._head, prompts)
        self._cache, self._mask, self._positions = prefilled.cache, prefilled.mask, prefilled.lengths[:, None]
        logits = prefilled.logits
        if any(n != 1 for n in repeats):
            counts = torch.tensor(repeats, device=logits.device)
            rows = torch.arange(len(prompts), device=logits.device).repeat_interleave(counts)
            self.keep(rows)
            logits = logits[rows]
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        ids = tokens[:, None].to(self._mask.device)
        logits = next_logits(self._model, self._head, ids, self._mask, self._positions, self._cache)
        # Rows that have ended stay until they are dropped; theirs must not run past a table of positions.
        self._positions = (self._positions + 1).clamp_(max=(self._model.context or sys.maxsize) - 1)
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]
        self._positions = self._positions[rows]


class RecomputeDecoder:
    """For models without an attention cache (state-space models), without positions, or whose past tokens change with
    the row's length (LongRoPE): the whole row again for every token, never padded. Correct and slow.
    """

    refills = True
    independent_rows = False

    def __init__(self, model: CausalModel, head: Head | None = None) -> None:
        self._model = model
        self._head = head
        self._rows: list[list[int]] = []

    def add(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> torch.Tensor:
        self._rows += [list(p) for p, n in zip(prompts, repeats, strict=True) for _ in range(n)]
        logits = self._forward([list(p) for p in prompts])
        return logits.repeat_interleave(torch.tensor(repeats, device=logits.device), dim=0)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._forward(self._rows)

    def keep(self, rows: torch.Tensor) -> None:
        self._rows = [self._rows[i] for i in rows.tolist()]

    def _forward(self, rows: list[list[int]]) -> torch.Tensor:
        """One forward for each group of neighbours of equal length."""
        parts = []
        for _, group in groupby(rows, key=len):
            ids = torch.tensor(list(group), device=self._model.device)
            inputs = self._model.accepted(input_ids=ids, use_cache=False, logits_to_keep=1)
            states, project = one_forward(self._model.module, self._head, inputs)
            parts.append(project(states[:, -1]))
        return torch.cat(parts)
