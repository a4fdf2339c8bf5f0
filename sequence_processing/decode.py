"""The decode loop's only view of a model: prefill distinct prompts, step, drop finished rows.

A `Decoder` returns the logits of the next token of each live row, [rows, V], in the model's own type. Faster ways
plug in behind this interface; each must give these logits up to rounding.
"""

import logging
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from sequence_processing.model import CausalModel

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """Live rows in a fixed order; used for one batch, in eval mode and without gradient."""

    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> torch.Tensor:
        """Take distinct prompts; row order is `repeats[0]` rows of the first, and so on. Logits [sum(repeats), V]."""
        ...

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append `tokens` int64 [rows] and return the next logits [rows, V]."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but `rows`, an ascending int64 index tensor."""
        ...


def decoder_for(model: CausalModel, longest: int) -> Decoder:
    """The decoder that serves this model for rows that reach at most `longest` tokens."""
    name = type(model.base).__name__
    if not model.caches_attention:
        log.info("%s has no attention cache to use: every token recomputes its row.", name)
        return RecomputeDecoder(model)
    if model.rope_change is not None and longest > model.rope_change:
        log.info("Rows of %s may pass %d tokens: every token recomputes its row.", name, model.rope_change)
        return RecomputeDecoder(model)
    return CacheDecoder(model)


class CacheDecoder:
    """The model's own modules and a `DynamicCache`: prompts left-padded, each prefilled once for its samples."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.text_config)
        self._mask = torch.empty(0)  # [rows, cached tokens], 0 on padding
        self._positions = torch.empty(0)  # [rows, 1], of the next token

    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> torch.Tensor:
        device = self._model.device
        width = max(len(p) for p in prompts)
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self._mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        logits = self._forward(ids, (self._mask.cumsum(-1) - 1).clamp_(min=0))
        self._positions = lengths[:, None]
        if max(repeats) > 1:
            rows = torch.repeat_interleave(
                torch.arange(len(prompts), device=device), torch.tensor(repeats, device=device)
            )
            self.keep(rows)
            logits = logits[rows]
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        logits = self._forward(tokens[:, None].to(self._mask.device), self._positions)
        # Rows that have ended stay until they are dropped; theirs must not run past a table of positions.
        self._positions = (self._positions + 1).clamp_(max=(self._model.context or sys.maxsize) - 1)
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]
        self._positions = self._positions[rows]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": self._mask,
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        accepted = {name: value for name, value in inputs.items() if name in self._model.accepts}
        return self._model.module(**accepted).logits[:, -1]


class RecomputeDecoder:
    """For models without an attention cache (state-space models), without positions, or whose past tokens change with
    the row's length (LongRoPE): the whole row again for every token, never padded. Correct and slow.
    """

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._rows: list[list[int]] = []

    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> torch.Tensor:
        self._rows = [list(p) for p, n in zip(prompts, repeats, strict=True) for _ in range(n)]
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
            inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
            accepted = {name: value for name, value in inputs.items() if name in self._model.accepts}
            parts.append(self._model.module(**accepted).logits[:, -1])
        return torch.cat(parts)
