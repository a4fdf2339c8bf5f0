"""Memory for keys and values: pages of PAGE tokens, counted by those who use them.

A full page of a prompt is known by its tokens and the page before it. A prompt that begins as another one does takes
the same pages: what a token's keys are depends on what stands before it, and on nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sequence_processing.native.ops import PAGE, Store
from sequence_processing.native.weights import Weights

_SLAB_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class PromptPages:
    """A prompt's pages, in order; the first `known` tokens were computed before."""

    pages: list[int]
    known: int


class Pages:
    """All pages of one decoder or one batch of teacher forcing. Grows by slabs, whose pages never move."""

    def __init__(self, weights: Weights) -> None:
        key = weights.layers[0].k.weight
        page_elements = len(weights.layers) * 2 * weights.kv_heads * PAGE * weights.width
        self._elements, self._dtype = page_elements, key.dtype
        self._slab_pages = max(1, _SLAB_BYTES // (page_elements * key.element_size()))
        self._slabs: list[torch.Tensor] = []
        self._free: list[int] = []
        self._users: dict[int, int] = {}
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}  # (page before, tokens) -> page
        self._names: dict[int, tuple[int, tuple[int, ...]]] = {}  # the same, the other way round
        self._shape = (len(weights.layers), weights.kv_heads, weights.width)

    @property
    def store(self) -> Store:
        layers, kv_heads, width = self._shape
        addresses = np.array([slab.data_ptr() for slab in self._slabs], dtype=np.uint64)
        return Store(addresses, self._slab_pages, layers, kv_heads, width, self._dtype)

    def take(self, count: int) -> list[int]:
        """`count` pages with one user each; raises what torch raises when memory runs out."""
        while len(self._free) < count:
            first = len(self._slabs) * self._slab_pages
            self._slabs.append(torch.empty(self._slab_pages * self._elements, dtype=self._dtype, device="cpu"))
            self._free.extend(range(first + self._slab_pages - 1, first - 1, -1))
        taken = [self._free.pop() for _ in range(count)]
        self._users.update(dict.fromkeys(taken, 1))
        return taken

    def take_prompt(self, ids: Sequence[int]) -> PromptPages:
        """Pages for a prompt; all of its full pages but the one with its last token may be another prompt's too."""
        pages: list[int] = []
        known = 0
        for start in range(0, len(ids) - PAGE, PAGE):
            name = (pages[-1] if pages else -1, tuple(ids[start : start + PAGE]))
            page = self._known.get(name)
            if page is None:
                page = self._known[name] = self.take(1)[0]
                self._names[page] = name
            else:
                self._users[page] += 1
                known += PAGE if known == start else 0
            pages.append(page)
        return PromptPages([*pages, *self.take(1)], known)

    def share(self, pages: Sequence[int]) -> None:
        """One user more for each."""
        for page in pages:
            self._users[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """One user less for each; those without a user are free again."""
        for page in pages:
            self._users[page] -= 1
            if self._users[page] == 0:
                del self._users[page]
                self._free.append(page)
                if page in self._names:
                    del self._known[self._names.pop(page)]
