"""Decoding with the kernels: rows of pages, a prompt's pages shared by its samples."""

from collections.abc import Sequence

import numpy as np
import torch

from sequence_processing.native.forward import Forward
from sequence_processing.native.ops import PAGE, Tokens
from sequence_processing.native.pages import Pages


class NativeDecoder:
    """A `Decoder` whose rows come and go at no cost, and whose arithmetic knows no neighbours."""

    refills = True
    independent_rows = True

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._pages = Pages(forward.weights)
        self._rows: list[list[int]] = []  # the pages of each row, its prompt's first
        self._tables = np.zeros((0, 0), dtype=np.int32)  # the same as an array [rows, widest]
        self._prefix = np.zeros(0, dtype=np.int64)  # prompt tokens
        self._own = np.zeros(0, dtype=np.int64)  # tokens after the prompt

    def add(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> torch.Tensor:
        taken = [self._pages.take_prompt(ids) for ids in prompts]
        tokens = tokens_of(prompts, tables_of([t.pages for t in taken]), known=[t.known for t in taken])
        lasts = np.cumsum([len(ids) - t.known for ids, t in zip(prompts, taken, strict=True)]) - 1
        logits = self._forward.logits(self._forward.hidden(tokens, self._pages.store, lasts))
        for prompt, count in zip(taken, repeats, strict=True):
            for _ in range(count):
                self._pages.share(prompt.pages)
                self._rows.append(list(prompt.pages))
            self._pages.give_back(prompt.pages)  # the rows hold them now
        lengths = np.repeat([len(ids) for ids in prompts], repeats)
        self._prefix = np.concatenate([self._prefix, lengths])
        self._own = np.concatenate([self._own, np.zeros_like(lengths)])
        self._tables = tables_of(self._rows)
        return logits.repeat_interleave(torch.tensor(repeats), dim=0)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        full = np.flatnonzero(self._own % PAGE == 0).tolist()
        for row, page in zip(full, self._pages.take(len(full)), strict=True):
            self._append(row, page)
        self._own += 1
        rows = np.arange(len(self._rows))
        batch = Tokens(tokens.numpy(), rows, self._prefix, self._own, self._tables)
        return self._forward.logits(self._forward.hidden(batch, self._pages.store, rows))

    def keep(self, rows: torch.Tensor) -> None:
        kept = rows.numpy()
        gone = np.setdiff1d(np.arange(len(self._rows)), kept)
        for row in gone.tolist():
            self._pages.give_back(self._rows[row])
        self._rows = [self._rows[row] for row in kept.tolist()]
        self._tables, self._prefix, self._own = (a[kept] for a in (self._tables, self._prefix, self._own))

    def _append(self, row: int, page: int) -> None:
        place = len(self._rows[row])
        self._rows[row].append(page)
        if place == self._tables.shape[1]:
            self._tables = np.pad(self._tables, ((0, 0), (0, max(4, place // 2))))
        self._tables[row, place] = page


def tokens_of(
    rows: Sequence[Sequence[int]],
    tables: np.ndarray,
    *,
    known: Sequence[int] | None = None,
    prefix: Sequence[int] | np.ndarray | None = None,
    first: int = 0,
) -> Tokens:
    """All tokens of the rows but their `known` first ones, each row behind `prefix` keys: none and 0 by default.

    Row i is row first + i of `tables`.
    """
    starts, before = (given if given is not None else [0] * len(rows) for given in (known, prefix))
    counts = [len(ids) - start for ids, start in zip(rows, starts, strict=True)]
    own = [np.arange(start + 1, len(ids) + 1) for ids, start in zip(rows, starts, strict=True)]
    return Tokens(
        ids=np.array([token for ids, start in zip(rows, starts, strict=True) for token in ids[start:]], dtype=np.int64),
        sequences=np.repeat(np.arange(first, first + len(rows)), counts),
        prefix=np.repeat(np.asarray(before, dtype=np.int64), counts),
        own=np.concatenate(own).astype(np.int64),
        tables=tables,
    )


def tables_of(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Pages of each row as int32 [rows, widest]."""
    tables = np.zeros((len(rows), max((len(pages) for pages in rows), default=0)), dtype=np.int32)
    for row, pages in enumerate(rows):
        tables[row, : len(pages)] = pages
    return tables
