"""A report by a reward against the rows taken one by one, and against the plain rule where both must say the same."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from jobs.client import JobHandle
from jobs.errors import UsageError
from jobs.gold import is_correct
from jobs.report import report, table
from jobs.reward_figures import figures
from tests.unit.jobs.test_report import SAMPLES, finished  # noqa: F401

Finished = tuple[JobHandle, list[dict[str, Any]]]


def plain(row: dict[str, Any]) -> float | None:
    from jobs.gold import is_correct

    return None if row["answer"] is None else is_correct(row["response"], row["answer"])


def test_a_reward_that_is_the_plain_rule_says_the_same(finished: Finished) -> None:  # noqa: F811
    job, rows = finished
    before = report(job)
    job.reward(plain)
    assert report(job) == before, "it is not taken unless asked for"
    made = report(job, reward="plain")
    assert (made.reward, made.judged, made.unjudged) == ("plain", before.judged, len(rows) - before.judged)
    assert made.accuracy == pytest.approx(before.accuracy, abs=1e-12)
    assert made.pass_at_k == pytest.approx(before.pass_at_k, abs=1e-12)
    assert before.accuracy is not None and made.mean_reward == pytest.approx(before.accuracy.mean)
    assert table([made])["mean_reward"][0] == made.mean_reward


def test_what_was_not_judged_counts_for_nothing(finished: Finished) -> None:  # noqa: F811
    """Some verdicts are missing here and there, so that prompts have different numbers of them, and some none."""
    job, rows = finished

    def some(row: dict[str, Any]) -> float | None:
        index, sample = row["prompt_index"], row["sample_index"]
        return None if index % 4 == 1 or (index + sample) % 5 == 0 else float("1" in row["response"])

    job.reward(some)
    right: dict[int, list[float]] = {}
    for row in rows:
        if (value := some(row)) is not None:
            right.setdefault(row["prompt_index"], []).append(value)
    assert {len(found) for found in right.values()} == {SAMPLES - 1, SAMPLES}
    made = report(job, reward="some")
    assert made.judged == sum(map(len, right.values())) and made.unjudged == len(rows) - made.judged
    for k in range(1, SAMPLES + 1):
        each = [np.mean([any(s) for s in combinations(found, k)]) for found in right.values() if len(found) >= k]
        assert made.pass_at_k[k] == pytest.approx(np.mean(each), abs=1e-12)
    means = [np.mean(found) for found in right.values()]
    assert made.accuracy is not None and made.accuracy.mean == pytest.approx(np.mean(means))
    assert made.mean_reward_error == pytest.approx(np.std(means, ddof=1) / np.sqrt(len(means)))


def test_a_reward_that_is_no_verdict(finished: Finished) -> None:  # noqa: F811
    job, _ = finished
    job.reward(lambda row: len(row["response_ids"]) / 4 - 1, name="longer")
    made, frame = report(job, reward="longer"), job.to_pandas()
    means = frame.groupby("prompt_index")["reward_longer"].mean()
    assert (made.accuracy, made.pass_at_k, made.unjudged) == (None, {}, 0)
    assert made.mean_reward == pytest.approx(means.mean())
    assert made.mean_reward_error == pytest.approx(means.sem())


def test_which_one(finished: Finished) -> None:  # noqa: F811
    job, rows = finished
    with pytest.raises(UsageError, match=rf"no reward nope \(it has none\); judge it: seqproc reward {job.id} --rew"):
        report(job, reward="nope")
    job.reward("math_answer")
    made = report(job)
    assert made.reward == "math_answer"
    right = [is_correct(row["response"], row["answer"]) for row in rows if row["answer"] is not None]
    assert made.accuracy is not None and made.accuracy.mean == pytest.approx(np.mean(right))
    with pytest.raises(UsageError, match=r"it has math_answer"):
        report(job, reward="nope")


def test_nothing_judged() -> None:
    none = figures([])
    assert (none.judged, none.accuracy, none.pass_at_k, none.mean, none.error) == (0, None, {}, None, None)
    same = figures([(np.array([1, 1]), np.array([np.nan, np.nan]))])
    assert same == none
    one = figures([(np.array([1, 1]), np.array([1.0, np.nan]))])
    assert (one.judged, one.mean, one.error, one.pass_at_k) == (1, 1.0, None, {1: 1.0})
