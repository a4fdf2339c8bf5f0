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
