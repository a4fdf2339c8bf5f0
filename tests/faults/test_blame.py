"""Whose fault it is: a prompt's, a job's or a worker's own harms nothing but itself."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs.client import JobHandle
from tests.faults.conftest import SPEC, TWELVE, Lab, assert_complete

SHORT: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "seed": 5, "max_new_tokens": 8, "shard_size": 4}


def test_a_poison_prompt(lab: Lab) -> None:
    prompts: list[Any] = [f"What is {i} + 3?" for i in range(8)]
    plain = lab.client.submit(prompts=prompts, **SHORT)
    prompts[2], prompts[5] = [10**6], "again and again " * 1000
    job = lab.client.submit(prompts=prompts, **SHORT)
    assert lab.start_worker("--idle-exit").wait(120) == 0
    assert_complete(lab, plain, list(plain.rows()))
    assert_complete(lab, job, [row for row in plain.rows() if row["prompt_index"] not in (2, 5)])
    errors = [(error["prompt_index"], error["error"]) for error in job.results.errors()]
    assert [index for index, _ in errors] == [2, 5]
    assert "1000000" in errors[0][1]
    assert "2048" in errors[1][1]


def test_a_spec_that_cannot_be_read(lab: Lab) -> None:
    """Its job fails with a sentence; the others are listed and go on."""
    good = lab.client.submit(prompts=["2 + 3 ="], **SHORT)
    damage = ['{"model": "tiny-ari', '["a list"]', json.dumps(good.record.spec | {"of_a_newer_version": 1})]
    bad = [lab.client.submit(prompts=["2 + 3 ="], **SHORT) for _ in damage]
    for text, job in zip(damage, bad, strict=True):
        _damage(lab, job, text)
    worker = lab.start_worker("--idle-exit")
    listed, shown = lab.puppet(command=["list"]), lab.puppet(command=["status", bad[0].id])
    assert (listed.wait(120), shown.wait(120)) == (0, 0), listed.words + shown.words
    assert worker.wait(120) == 0
    for job, said in zip(bad, ['"model": "tiny-ari', "a list", "of_a_newer_version"], strict=True):
        record = job.refresh()
        assert (record.state, record.failed_shards) == ("failed", 1)
        assert f"the stored spec of job {job.id} cannot be read" in (record.error or "")
        assert said in (record.error or "")
    assert_complete(lab, good, list(good.rows()))


@pytest.mark.parametrize("fields", [None, {"of_a_newer_version": 1}])
def test_a_spec_that_cannot_be_read_any_more(lab: Lab, fields: dict[str, int] | None) -> None:
    """Damaged when the job had begun: it fails as any that cannot be read, and what is done stays."""
    job = lab.client.submit(prompts=["2 + 3 =", "4 + 5 =", "6 + 7 ="], **SHORT | {"shard_size": 1})
    assert lab.puppet("real", "committed:die").wait(120) == -signal.SIGKILL
    assert job.refresh().identity is not None
    _damage(lab, job, "null" if fields is None else json.dumps(job.record.spec | fields))
    assert lab.puppet("real").wait(120) == 0
    record = job.refresh()
    assert (record.state, record.done_shards, record.failed_shards) == ("failed", 1, 2)
    assert f"the stored spec of job {job.id} cannot be read" in (record.error or "")
    assert lab.outcomes(job) == ["done", "failed"], "no worker tried again"
    assert [(row["prompt_index"], row["sample_index"]) for row in job.rows(partial=True)] == [(0, 0), (0, 1)]


def _damage(lab: Lab, job: JobHandle, spec: str) -> None:
    with closing(sqlite3.connect(lab.settings.home / "seqproc.db")) as database, database:
        database.execute("UPDATE jobs SET spec = ? WHERE id = ?", (spec, job.id))


def test_out_of_memory(lab: Lab) -> None:
    """A worker that cannot have the memory of the batch goes on with half of it."""
    spec = SPEC | {"num_prompts": 16, "shard_size": 16, "gen_batch_size": 64, "max_new_tokens": 320, "stop_strings": []}
    starved, plain = (lab.client.submit(**spec | {"ignore_eos": True}) for _ in range(2))
    assert lab.puppet("real", "running:limit:40").wait(120) == 0
    assert "Out of memory with 64 rows; going on with 32" in _log(starved)
    assert "Out of memory" not in _log(plain)
    assert_complete(lab, plain, list(plain.rows()))
    assert_complete(lab, starved, list(plain.rows()))


def _log(job: JobHandle) -> str:
    return "\n".join(line["message"] for line in job.logs())


def test_a_worker_with_the_wrong_results_folder(lab: Lab, tmp_path: Path) -> None:
    """Another database's, or one that was not mounted; also before there is any job."""
    assert lab.puppet().wait(120) == 0
    other = Lab(tmp_path / "other")
    other.submit()
    other.close()
    roots = {"results elsewhere": tmp_path / "unmounted", "belongs to another database": other.settings.results}
    early = [lab.puppet(results_dir=root) for root in roots.values()]
    assert [worker.wait(120) for worker in early] == [1, 1]
    job = lab.submit()
    late = [lab.puppet(results_dir=root) for root in roots.values()]
    assert [worker.wait(120) for worker in late] == [1, 1]
    for worker, (said, root) in zip([*early, *late], [*roots.items()] * 2, strict=True):
        assert said in worker.words
        assert str(root) in worker.words
    assert not (tmp_path / "unmounted").exists()
    assert lab.outcomes(job) == [], "they claimed nothing"
    assert lab.puppet().wait(120) == 0
    assert_complete(lab, job, TWELVE)
