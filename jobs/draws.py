"""Prompts drawn with replacement: independent draws, each equally likely to be any prompt of the source.

A prompt that is drawn again is another prompt of the job, with draws of its own, and is told apart by its custom_id:
`test-17`, `test-17#2`. A prompt without a custom_id is named by its place in the source, `row-17`.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Iterator

from jobs.spec import PromptRow

Numbered = tuple[int, PromptRow]  # a prompt and its place in the source


def with_replacement(rows: Iterable[Numbered], count: int, seed: int | None) -> Iterator[Numbered]:
    """`count` draws from rows that are read once, in memory bounded by the draws; none if there are no rows.

    Each draw is a reservoir of one (Vitter 1985, "Random sampling with a reservoir") that skips: at row i the place of
    its next change is i/U rounded down, plus 1, for then P(later than j) = i/j. At the end each holds any of n rows
    with 1/n.
    """
    chance = random.Random(seed)
    due = [(1, slot) for slot in range(count)]
    drawn: list[Numbered] = []
    for place, row in enumerate(rows, start=1):
        drawn = drawn or [row] * count
        while due[0][0] == place:
            slot = due[0][1]
            drawn[slot] = row
            heapq.heapreplace(due, (int(place / (1 - chance.random())) + 1, slot))
    yield from drawn


def told_apart(rows: Iterable[Numbered]) -> Iterator[Numbered]:
    """The same rows, each draw under a custom_id of its own."""
    times: Counter[int] = Counter()
    for number, row in rows:
        times[number] += 1
        name = f"row-{number}" if row.custom_id is None else row.custom_id
        again = f"#{times[number]}" if times[number] > 1 else ""
        yield number, row.model_copy(update={"custom_id": f"{name}{again}"})
