"""A report against the rows it was made of, taken one by one in float64."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from jobs.client import Client, JobHandle
from jobs.errors import NotFinished
from jobs.gold import is_correct
from jobs.report import report, table
from jobs.report_table import table_of
from jobs.shard_files import write_attempt
from tests.house import House

SAMPLES, PROMPTS = 4, 30


def sampled(prompt: int, answer: str | None) -> list[dict[str, Any]]:
    """Rows whose sampling distribution is not the model's. One response is empty."""
    rng = np.random.default_rng(prompt)
    rows = []
    for sample in range(SAMPLES):
        length = int(rng.integers(0 if prompt == 3 else 1, 12))
        logprobs = -rng.gamma(0.5, 1.0, length).astype(np.float32)
        values = {"logprobs": logprobs, "sampling_logprobs": -np.abs(logprobs + rng.normal(0.05, 0.1, length))}
        values |= {name: rng.gamma(0.5, 1.0, length) for name in ("entropies", "sampling_entropies")}
        row = {
            "prompt_index": prompt,
            "sample_index": sample,
            "custom_id": str(prompt),
            "response": f"<answer>{rng.integers(0, 2)}</answer>",
            "answer": answer,
            "prompt_ids": [1],
            "response_ids": list(range(length)),
            "finish_reason": ["eos", "length"][int(rng.integers(0, 2))],
            "token_ends": list(range(length)),
        }
        rows.append(row | {name: array.astype(np.float32) for name, array in values.items()})
    return rows


@pytest.fixture
def finished(house: House) -> tuple[JobHandle, list[dict[str, Any]]]:
    """A job in several shards, some of whose prompts have gold answers; and its rows."""
    prompts = [{"prompt": f"p{i}", "answer": None if i % 5 == 0 else "1"} for i in range(PROMPTS)]
    job = house.submit(prompts, G=SAMPLES, shard_size=7, name="step 10", labels={"run": "a"}).job
    everything = []
    while (claim := house.claim()) is not None:
        shard = claim.shard
        span = range(shard.first_prompt, shard.first_prompt + shard.stop - shard.start)
        rows = [row for i in span for row in sampled(i, prompts[i]["answer"])]
        assert house.store.commit(claim, write_attempt(house.paths(job), shard, rows, [], {}))
        everything += rows
    return Client(house.settings).get(job.id), everything


def test_against_the_rows_one_by_one(finished: tuple[JobHandle, list[dict[str, Any]]]) -> None:
    job, rows = finished
    seen: list[int] = []
    made = report(job, on_shard=seen.append)
    assert seen == [1, 2, 3, 4, 5]
    assert (made.id, made.name, made.labels, made.state) == (job.id, "step 10", {"run": "a"}, "succeeded")
    lengths = [len(row["response_ids"]) for row in rows]
    assert (made.prompts, made.sequences, made.tokens) == (PROMPTS, len(rows), sum(lengths))
    assert made.mean_length == pytest.approx(np.mean(lengths))
    assert made.median_length == sorted(lengths)[(len(lengths) - 1) // 2]
    assert made.finish_reasons == Counter(row["finish_reason"] for row in rows)
    for name, spread in {
        "logprobs": made.logprob,
        "entropies": made.entropy,
        "sampling_logprobs": made.sampling_logprob,
        "sampling_entropies": made.sampling_entropy,
    }.items():
        values = np.concatenate([row[name] for row in rows]).astype(np.float64)
        assert spread is not None
        assert (spread.mean, spread.infinite) == (pytest.approx(values.mean(), rel=1e-6), 0)
        for share, found in {0.25: spread.p25, 0.5: spread.p50, 0.75: spread.p75}.items():
            width = max(abs(found) / 32, 2**-20)  # of the bin that it lies in
            assert np.mean(values < found - width) <= share <= np.mean(values <= found + width)


def test_pass_at_every_k(finished: tuple[JobHandle, list[dict[str, Any]]]) -> None:
    job, rows = finished
    made = report(job)
    right: dict[int, list[bool]] = {}
    for row in rows:
        if row["answer"] is not None:
            right.setdefault(row["prompt_index"], []).append(is_correct(row["response"], row["answer"]))
    assert made.judged == SAMPLES * len(right) == SAMPLES * 24
    for k in range(1, SAMPLES + 1):
        each = [np.mean([any(subset) for subset in combinations(found, k)]) for found in right.values()]
        assert made.pass_at_k[k] == pytest.approx(np.mean(each), abs=1e-12)
    assert made.accuracy is not None
    assert made.accuracy.mean == pytest.approx(made.pass_at_k[1], abs=1e-12)
    assert made.accuracy.low < made.accuracy.mean < made.accuracy.high


def test_how_far_the_distributions_lie_apart(finished: tuple[JobHandle, list[dict[str, Any]]]) -> None:
    job, rows = finished
    ratios = [math.fsum(row["logprobs"].astype(float) - row["sampling_logprobs"].astype(float)) for row in rows]
    weights = np.exp(ratios)
    made = report(job).apart
    assert made is not None
    assert made.kl == pytest.approx(-sum(ratios) / sum(len(row["response_ids"]) for row in rows), rel=1e-9)
    assert made.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-9)
    assert made.ess_share == pytest.approx(made.ess / len(rows))


def test_a_table_has_a_row_a_job(finished: tuple[JobHandle, list[dict[str, Any]]]) -> None:
    made = report(finished[0])
    frame = table([made, made])
    assert len(frame) == 2
    first = frame.iloc[0]
    assert made.accuracy and made.entropy and made.apart
    assert (first["accuracy"], first["accuracy_low"]) == made.accuracy[:2]
    assert (first["pass@4"], first["entropy_mean"], first["ess"]) == (
        made.pass_at_k[4], made.entropy.mean, made.apart.ess,
    )  # fmt: skip
    assert (first["label_run"], first["finish_eos"]) == ("a", made.finish_reasons["eos"])


def test_a_table_says_by_what_each_job_is_judged(finished: tuple[JobHandle, list[dict[str, Any]]]) -> None:
    plain = report(finished[0])
    by_reward = replace(plain, reward="math_answer")
    assert "BY" not in table_of([plain, plain]).header
    found = table_of([plain, by_reward, replace(plain, accuracy=None)])
    at = found.header.index("BY")
    assert [row[at] for row in found.rows] == ["equal text", "math_answer", ""]
    assert found.header[at - 1] == "ACCURACY [95 %]"


def test_without_measurements_answers_or_an_end(house: House) -> None:
    job = house.submit(["a", "b", "c"], measurements=["logprobs"], G=2).job
    handle = Client(house.settings).get(job.id)
    with pytest.raises(NotFinished):
        report(handle)
    nothing = report(handle, partial=True)
    assert (nothing.sequences, nothing.accuracy, nothing.logprob, nothing.apart) == (0, None, None, None)
    assert (nothing.mean_length, nothing.median_length, nothing.pass_at_k) == (None, None, {})
    house.run_one()
    some = report(handle.refresh() and handle, partial=True)
    assert some.sequences == 4 and some.logprob is not None and some.entropy is None
