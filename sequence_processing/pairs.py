"""What is scored, and how many rows of it at once.

A `Pair` is a prompt and a given response. Batches are cut from a longest-first order: like lengths share a batch, and
if memory is short it shows at once.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias, TypeVar

from sequence_processing.distribution import Measured

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt of at least one token, and a response that may be empty."""

    prompt_ids: list[int]
    response_ids: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """As many rows at once as fit into `tokens` positions, padding included; one at least."""

    tokens: int


Size: TypeAlias = int | TokenBudget  # an int counts rows
Scored: TypeAlias = list[tuple[int, Measured]]  # (index into pairs, measurements [len(response)])


def in_order(scored: Iterable[Scored]) -> list[Measured]:
    """Measurements of all pairs, in the order of the pairs."""
    return [m for _, m in sorted(chain.from_iterable(scored), key=lambda item: item[0])]


def longest_first(pairs: Sequence[Pair]) -> list[int]:
    return sorted(range(len(pairs)), key=lambda i: -pairs[i].length)


def width_of(pairs: Sequence[Pair], order: Sequence[int]) -> int:
    """Tokens of the longest of rows that stand longest first."""
    return pairs[order[0]].length


def rows_of(size: Size, width: int) -> int:
    """How many rows of `width` tokens make a batch."""
    return size if isinstance(size, int) else max(1, size.tokens // width)


def batches_of(order: Sequence[T], length: Callable[[T], int], size: Size) -> Iterator[list[T]]:
    """Cut a longest-first order into batches."""
    start = 0
    while start < len(order):
        rows = rows_of(size, length(order[start]))
        yield list(order[start : start + rows])
        start += rows


def halved(pairs: Sequence[Pair], held: Sequence[int], size: Size) -> Size:
    """Half of `size`, or of what these rows made use of it."""
    if isinstance(size, int):
        rows = min(size, len(held)) // 2
        log.warning("Out of memory with %d rows; going on with %d.", len(held), rows)
        return rows
    tokens = min(size.tokens, sum(pairs[i].length for i in held)) // 2
    log.warning("Out of memory with %d rows; going on with %d tokens.", len(held), tokens)
    return TokenBudget(tokens)
