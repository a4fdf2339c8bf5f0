"""A measurement along the response: what a summary knows of each position, as lines that can be drawn or tabulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.summary import TOKEN_BINS, ByPosition, Floats, Ints, bucket_starts, quantiles


@dataclass(frozen=True)
class Series:
    """One value a group of neighbouring positions, in nats with their sign."""

    edges: list[int]  # [groups + 1] positions
    reach: Floats  # responses that reach the group's positions, on average
    means: Floats  # of the values that are finite; NaN where none is
    bands: Floats  # [shares, groups] quantiles, which count values that are not finite; rising from band to band

    @classmethod
    def of(cls, name: str, measurement: ByPosition, shares: Sequence[float], most: int | None = None) -> Series:
        """The measurement whose column is `name`, in at most about `most` groups; quantiles at these rising shares."""
        starts = bucket_starts(len(measurement.counts))
        size = max(1, math.ceil(starts[-1] / most)) if most else 1
        first = starts_of_groups(starts, size)
        edges = [*starts[first].tolist(), int(starts[-1])]
        counts = np.add.reduceat(measurement.counts, first, axis=0)
        finite = counts.sum(axis=1) - np.add.reduceat(measurement.infinite, first)
        sums = np.add.reduceat(measurement.sums, first)
        sign = -1 if name.endswith("logprobs") else 1  # bins hold magnitudes
        return cls(
            edges=edges,
            reach=counts.sum(axis=1) / np.diff(edges),
            means=np.where(finite > 0, sums / np.maximum(finite, 1), np.nan),
            bands=np.sort(sign * quantiles(counts, TOKEN_BINS, _mirrored(shares, sign)), axis=1).T,
        )


def starts_of_groups(starts: Ints, size: int) -> Ints:
    """Index of the first bucket of each run of buckets that begin in the same multiple of `size` tokens."""
    return np.flatnonzero(np.diff(starts[:-1] // size, prepend=-1))


def _mirrored(shares: Sequence[float], sign: int) -> tuple[float, ...]:
    """The shares of magnitudes below which lie what these shares of values are below."""
    return tuple(shares) if sign > 0 else tuple(1 - share for share in reversed(shares))
