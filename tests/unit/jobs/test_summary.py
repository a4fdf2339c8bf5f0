"""A summary against the rows it was made of, taken one by one."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.gold import is_correct
from jobs.parquet import read_pieces, write_rows
from jobs.summary import (
    SEQUENCE_BINS,
    TOKEN_BINS,
    Bins,
    Summary,
    bucket_of,
    bucket_starts,
    columns_for,
    quantiles,
    summarise,
)

MEASURED = ("logprobs", "entropies")
SAMPLES = 4


def rows_of(prompts: range, *, longest: int = 700, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with everything that a summary must count: empty responses, long ones, infinities, answers or none."""
    rng = np.random.default_rng([seed, prompts.start])
    rows = []
    for prompt in prompts:
        for sample in range(SAMPLES):
            length = int(rng.integers(0, longest)) if sample else sample
            logprobs = -rng.gamma(0.5, 1.0, length).astype(np.float32)
            logprobs[rng.random(length) < 0.002] = -np.inf
            row = {
                "prompt_index": prompt,
                "sample_index": sample,
                "custom_id": str(prompt),
                "response": f"<answer>{rng.integers(0, 3)}</answer>",
                "answer": None if prompt % 3 == 0 else "1",
                "response_ids": list(range(length)),
                "logprobs": logprobs,
                "entropies": rng.gamma(0.5, 1.0, length).astype(np.float32),
                "finish_reason": ["eos", "stop", "length"][int(rng.integers(0, 3))],
                "token_ends": list(range(length)),
            }
            rows.append(row)
    return rows


def summary_of(folder: Path, *shards: list[dict[str, Any]], measured: tuple[str, ...] = MEASURED) -> Summary:
    paths = [folder / f"{i}.parquet" for i in range(len(shards))]
    for path, rows in zip(paths, shards, strict=True):
        write_rows(path, rows)
    return summarise(read_pieces(paths, columns_for(measured)), measured, shards=len(shards))


def test_against_the_rows_one_by_one(tmp_path: Path) -> None:
    rows = rows_of(range(40))
    summary = summary_of(tmp_path, rows)
    assert (summary.shards, summary.sequences) == (1, len(rows))
    assert summary.tokens == sum(len(row["response_ids"]) for row in rows)
    assert summary.reasons == Counter(row["finish_reason"] for row in rows)
    lengths = Counter(int(bucket_of(np.array([len(row["response_ids"])]))[0]) for row in rows)
    assert {i: n for i, n in enumerate(summary.lengths.tolist()) if n} == dict(lengths)

    sums = [math.fsum(row["logprobs"].tolist()) for row in rows]
    assert summary.sequence_infinite == sum(math.isinf(value) for value in sums) > 0
    assert summary.sequence_sum == pytest.approx(math.fsum(value for value in sums if math.isfinite(value)), rel=1e-9)
    assert summary.sequence_counts.sum() == len(rows)

    judged = [row for row in rows if row["answer"] is not None]
    right = Counter(row["prompt_index"] for row in judged if is_correct(row["response"], row["answer"]))
    of_each = Counter(right[prompt] for prompt in {row["prompt_index"] for row in judged})
    assert summary.judged == len(judged)
    assert {k: n for k, n in enumerate(summary.correct.tolist()) if n} == dict(of_each)


@pytest.mark.parametrize("name", MEASURED)
def test_means_are_exact_and_quantiles_within_a_bin(tmp_path: Path, name: str) -> None:
    rows = rows_of(range(60))
    measurement = summary_of(tmp_path, rows).measured[name]
    starts = bucket_starts(len(measurement.counts))
    shares = (0.1, 0.5, 0.9)
    found = quantiles(measurement.counts, TOKEN_BINS, shares)
    for bucket in range(len(starts) - 1):
        held = np.concatenate([row[name][starts[bucket] : starts[bucket + 1]] for row in rows]).astype(np.float64)
        finite = held[np.isfinite(held)]
        assert measurement.counts[bucket].sum() == len(held)
        assert measurement.infinite[bucket] == len(held) - len(finite)
        assert measurement.sums[bucket] == pytest.approx(math.fsum(finite.tolist()), rel=1e-12, abs=1e-12)
        for share, value in zip(shares, found[bucket], strict=True):
            exact = np.sort(np.abs(held))[max(math.ceil(share * len(held)) - 1, 0)]
            low, high = (TOKEN_BINS.edges[TOKEN_BINS.of(np.array([exact], np.float32))[0] + i] for i in (0, 1))
            assert low <= value <= high


def test_quantiles_of_a_policy_that_is_sure_of_itself() -> None:
    values = (10 ** np.random.default_rng(0).normal(-4.5, 0.4, 10_001)).astype(np.float32)  # nats
    counts = np.bincount(TOKEN_BINS.of(values), minlength=TOKEN_BINS.count)
    shares = (0.1, 0.25, 0.5, 0.75, 0.9)
    [found] = quantiles(counts[None], TOKEN_BINS, shares)
    assert found == pytest.approx(np.quantile(values.astype(np.float64), shares), rel=1 / 32)


def test_parts_add_up_to_the_whole(tmp_path: Path) -> None:
    shards = [rows_of(range(i, i + 3), longest=[300, 3, 600][i % 3]) for i in range(0, 18, 3)]
    (tmp_path / "whole").mkdir()
    whole = summary_of(tmp_path / "whole", *shards)
    parts = [summary_of(tmp_path, shard) for shard in shards]
    for total in (sum(parts, Summary()), sum(reversed(parts), Summary())):
        for name in ("shards", "sequences", "tokens", "reasons", "sequence_infinite", "judged"):
            assert getattr(total, name) == getattr(whole, name), name
        for name in ("lengths", "sequence_counts", "correct"):
            assert getattr(total, name).tolist() == getattr(whole, name).tolist(), name
        assert total.sequence_sum == pytest.approx(whole.sequence_sum, rel=1e-12)
        for name in MEASURED:
            assert (total.measured[name].counts == whole.measured[name].counts).all()
            assert total.measured[name].sums == pytest.approx(whole.measured[name].sums, rel=1e-12)
            assert (total.measured[name].infinite == whole.measured[name].infinite).all()


def test_prompts_that_lie_in_two_pieces_are_judged_once(tmp_path: Path) -> None:
    rows = rows_of(range(700), longest=2)  # 2,800 rows: three row groups
    write_rows(tmp_path / "s.parquet", rows)
    [table] = read_pieces([tmp_path / "s.parquet"], columns_for(MEASURED))
    whole = summarise([table], MEASURED, shards=1)
    pieces = summarise([table.slice(0, 1023), table.slice(1023)], MEASURED, shards=1)
    assert pieces.correct.tolist() == whole.correct.tolist()
    assert pieces.correct.sum() == len([p for p in range(700) if p % 3])


def test_without_measurements_and_without_rows(tmp_path: Path) -> None:
    bare = summary_of(tmp_path, rows_of(range(4)), measured=())
    assert (bare.sequences, bare.measured) == (16, {})
    assert bare.tokens == summary_of(tmp_path, rows_of(range(4))).tokens
    empty = summary_of(tmp_path, [])
    assert (empty.shards, empty.sequences, empty.tokens) == (1, 0, 0)


def test_a_measurement_that_is_missing_is_said(tmp_path: Path) -> None:
    rows = rows_of(range(2))
    rows[3]["entropies"] = None
    with pytest.raises(ValueError, match="1 of 8 rows have no entropies"):
        summary_of(tmp_path, rows)


@given(st.integers(0, 10**7))
def test_a_position_lies_in_its_bucket(position: int) -> None:
    [bucket] = bucket_of(np.array([position]))
    start, end = bucket_starts(int(bucket) + 1)[-2:]
    assert start <= position < end
    assert end - start <= max(1, position / 128)


@given(st.floats(0, 1e9, width=32), st.booleans(), st.sampled_from([TOKEN_BINS, SEQUENCE_BINS]))
def test_a_value_lies_in_its_bin(value: float, negative: bool, bins: Bins) -> None:
    [i] = bins.of(np.array([-value if negative else value], np.float32))
    low, high = bins.edges[i], bins.edges[i + 1]
    assert low <= value
    assert value < high or i == bins.count - 1
    if 0 < i < bins.count - 1:
        assert high - low <= low / 2**bins.bits
