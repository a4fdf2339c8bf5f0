"""Rows of different lengths, their values one after the other, as Parquet and Arrow keep a column of lists."""

from __future__ import annotations

from typing import Any

import numpy as np


def row_sums(values: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[rows] sums, added up in float64, of rows of these `lengths`, whose `values` [sum of lengths] stand end to end.

    A row without values sums to 0.
    """
    sums = np.zeros(len(lengths))
    some = lengths > 0  # reduceat would give an empty row its neighbour's first value
    if some.any():
        starts = (np.cumsum(lengths) - lengths)[some]
        sums[some] = np.add.reduceat(values, starts, dtype=np.float64)
    return sums


def positions_of(lengths: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[sum of lengths] where in its row each value stands, from 0."""
    some = lengths[lengths > 0]
    positions = np.ones(int(some.sum()), np.int64)  # each is one more than the last, but at the start of a row
    if len(some):
        positions[0] = 0
        positions[np.cumsum(some)[:-1]] = 1 - some[:-1]
    return np.cumsum(positions, out=positions)
