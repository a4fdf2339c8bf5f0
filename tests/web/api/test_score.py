"""Scoring a job's sequences through both clients: the server reads its own files, and refuses in the same words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs import Client
from jobs.errors import JobNotFound, SpecError
from tests.house import House

FIELDS: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "shard_size": 2, "temperature": 0.7}


def test_a_score_and_its_comparison(client: Client, local: Client, house: House) -> None:
    job = client.submit(**FIELDS, prompts=[{"prompt": f"p{i}", "custom_id": f"c{i}"} for i in range(3)], seed=4)
    house.finish(local.get(job.id).record)
    plan = client.plan(kind="score", source=job.id, model="tiny-arithmetic")
    handle = client.get(job.id).score(name="after", dtype="float32")
    spec = handle.record.spec
    assert (spec["source"], spec["temperature"], spec["seed"], spec["dtype"]) == (job.id, 0.7, 4, "float32")
    assert (handle.record.num_prompts, handle.record.name) == (6, "after")
    assert handle.record.snapshot_digest == plan.snapshot_digest
    claimed = house.claim()
    assert claimed is not None and claimed.job.id == handle.id
    house.store.hand_back(claimed, "not now")
    assert handle.compared().summary(partial=True).sequences == 0
    _as_before(house, local.get(handle.id).record.id, local.get(job.id))
    summary = handle.compared().summary()
    assert summary == local.get(handle.id).compared().summary()
    assert summary.model is not None and (summary.sequences, summary.model.k1, summary.model.ess) == (6, 0.0, 6.0)
    for ours, theirs in zip(handle.compared().rows(), local.get(handle.id).compared().rows(), strict=True):
        for name, value in theirs.items():
            assert np.array_equal(ours[name], value, equal_nan=True) if name == "log_ratios" else True
        assert (ours["custom_id"], ours["sample_index"]) == (theirs["custom_id"], theirs["sample_index"])


def test_the_same_sentences(client: Client, local: Client, house: House) -> None:
    job = client.submit(**FIELDS, prompts=["a"])
    with pytest.raises(SpecError, match=f"source: job {job.id} is queued; score it once it has ended"):
        client.get(job.id).score()
    with pytest.raises(SpecError, match="source: no job zzz"):
        client.submit(kind="score", source="zzz", model="tiny-arithmetic")
    with pytest.raises(SpecError, match="prompts come from one place, but prompts and source are given"):
        client.submit(kind="score", source=job.id, model="tiny-arithmetic", prompts=["a"])
    house.finish(local.get(job.id).record)
    handle = client.get(job.id).score()
    client.get(job.id).delete()
    with pytest.raises(JobNotFound, match=f"job {job.id}, whose sequences job {handle.id} scored, was deleted"):
        handle.compared()


def _as_before(house: House, job_id: str, source: Any) -> None:
    """The score of a model that finds every token as probable as the source's did."""
    from jobs.shard_files import write_attempt

    before = list(source.rows())
    while (claim := house.claim()) is not None:
        span = range(claim.shard.first_prompt, claim.shard.first_prompt + claim.shard.stop - claim.shard.start)
        rows = [
            before[i]
            | {
                "prompt_index": i,
                "sample_index": 0,
                "custom_id": f"{before[i]['custom_id']}#{before[i]['sample_index']}",
            }
            for i in span
        ]
        assert house.store.commit(claim, write_attempt(house.paths(claim.job), claim.shard, rows, [], {}))
