"""The drift that a job's workers tell of, in one place."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.client import Client
from jobs.drift import drift_of
from jobs.records import Attempt
from jobs.report import report
from jobs.shard_files import write_attempt
from jobs.snapshot import read_rows
from tests.house import House
from tests.rows import made_row

NOTHING = {"reason": "dtype float32: nothing to compare"}


def attempt(drift: dict[str, Any] | None, shard: int = 0) -> Attempt:
    return Attempt("j", shard, 1, "w", 0.0, 1.0, "done", None, 5, {"device": "cpu", "drift": drift})


def measured(tokens: int, scale: float) -> dict[str, Any]:
    def spread(size: float) -> dict[str, float]:
        return {"mean": -size / 4, "mean_abs": size, "p50": size, "p90": size, "p99": size, "max": 3 * size}

    return {
        "dtype": "bfloat16",
        "sequences": [[tokens, 0]],
        "tokens": tokens,
        "logprobs": spread(scale),
        "entropies": spread(2 * scale),
    }


def test_each_measurement_counts_once_and_by_its_tokens() -> None:
    one, other = measured(100, 0.001), measured(300, 0.005)
    found = drift_of([attempt(one), attempt(one, 1), attempt(other, 2), attempt(one, 3), attempt(None, 4)])
    assert found is not None
    assert (found.dtype, found.tokens, found.reason) == ("bfloat16", 400, None)
    assert found.logprob_mean == pytest.approx((100 * 0.001 + 300 * 0.005) / 400)
    assert found.logprob_bias == pytest.approx(-(100 * 0.001 + 300 * 0.005) / 1600)
    assert (found.logprob_max, found.entropy_max) == (pytest.approx(0.015), pytest.approx(0.03))
    assert found.entropy_mean == pytest.approx(0.008)


def test_what_is_not_measured_is_said() -> None:
    none = drift_of([attempt(NOTHING), attempt(NOTHING, 1)])
    assert none is not None and (none.logprob_mean, none.tokens, none.dtype) == (None, 0, None)
    assert none.reason == NOTHING["reason"]
    some = drift_of([attempt(NOTHING), attempt(measured(10, 0.1))])
    assert some is not None and (some.tokens, some.reason) == (10, NOTHING["reason"])


@pytest.mark.parametrize("details", [None, {}, {"drift": None}, {"drift": {"tokens": 5}}, {"drift": "of old"}])
def test_nothing_told(details: dict[str, Any] | None) -> None:
    assert drift_of([]) is None
    assert drift_of([Attempt("j", 0, 1, "w", 0.0, None, None, None, 0, details)]) is None


def test_a_report_has_it(house: House) -> None:
    job = house.submit(["a"], G=1, measurements=["logprobs"]).job
    claim = house.claim()
    assert claim is not None
    [prompt] = read_rows(house.paths(job), 0, 0, 1)
    details = {"drift": measured(7, 0.25)}
    assert house.store.commit(claim, write_attempt(house.paths(job), claim.shard, [made_row(prompt, 0)], [], details))
    made = report(Client(house.settings).get(job.id))
    assert made.drift is not None and made.drift.logprob_mean == 0.25
    assert (made.flat()["drift_logprob_max"], made.flat()["drift_dtype"]) == (0.75, "bfloat16")
