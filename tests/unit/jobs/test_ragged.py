"""Sums and positions of ragged rows, against Python's own over the rows one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jobs.ragged import positions_of, row_sums

SHAPES = [[], [0], [0, 0], [3], [2, 0, 0, 5], [0, 1, 4, 0], [1] * 7, [300, 0, 1, 40]]


@pytest.mark.parametrize("lengths", SHAPES, ids=str)
def test_each_row_by_itself(lengths: list[int]) -> None:
    values = np.random.default_rng(0).normal(size=sum(lengths)).astype(np.float32)
    rows = np.split(values, np.cumsum(lengths)[:-1]) if lengths else []
    expected = [math.fsum(row.tolist()) for row in rows]
    np.testing.assert_allclose(row_sums(values, np.array(lengths, np.int64)), expected, rtol=1e-12, atol=1e-12)
    assert positions_of(np.array(lengths, np.int64)).tolist() == [i for length in lengths for i in range(length)]
