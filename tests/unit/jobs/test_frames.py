"""Data frames of reports against the rows they were made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs import frames
from jobs.client import JobHandle
from jobs.report import study
from tests.unit.jobs import test_report

finished = test_report.finished
Finished = tuple[JobHandle, list[dict[str, Any]]]


def test_every_k_of_every_job(finished: Finished) -> None:
    made = study(finished[0]).report
    frame = frames.pass_at_k([made, made])
    assert frame.columns.tolist() == ["id", "name", "k", "pass_at_k"]
    assert frame["k"].tolist() == 2 * [1, 2, 3, 4]
    assert frame["pass_at_k"].tolist() == 2 * list(made.pass_at_k.values())
    assert frames.pass_at_k([]).columns.tolist() == frame.columns.tolist()


def test_positions_against_the_rows(finished: Finished) -> None:
    job, rows = finished
    frame = frames.by_position([study(job)])
    assert set(frame["measurement"]) == {"logprobs", "entropies", "sampling_logprobs", "sampling_entropies"}
    longest = max(len(row["response_ids"]) for row in rows)
    for name, part in frame.groupby("measurement"):
        assert part["position"].tolist() == list(range(longest))
        assert (part["end"] - part["position"] == 1).all()
        for _, found in part.iterrows():
            held = np.array([row[name][found["position"]] for row in rows if len(row[name]) > found["position"]])
            assert found["n"] == len(held)
            assert found["mean"] == pytest.approx(held.mean(dtype=np.float64), rel=1e-6)
            for share in (0.1, 0.25, 0.5, 0.75, 0.9):
                below, above = (np.quantile(held, share, method=way) for way in ("lower", "higher"))
                slack = max(abs(below), abs(above)) / 32 + 2**-10
                assert below - slack <= found[f"p{100 * share:.0f}"] <= above + slack


def test_nothing_to_tell(finished: Finished) -> None:
    columns = frames.by_position([study(finished[0])]).columns.tolist()
    assert frames.by_position([]).columns.tolist() == columns
