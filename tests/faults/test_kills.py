"""kill -9 at every point of a shard's life, and of a submit's: who comes next finishes it, and no row differs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.client import Client, JobHandle
from jobs.gc import ORPHAN_AGE, collect
from jobs.records import Job
from tests.faults.conftest import TWELVE, Lab, assert_complete, scripted_rows


def _claimed(lab: Lab, job: JobHandle, record: Job) -> bool:
    return (record.done_shards, record.running_shards, len(lab.files(job))) == (1, 1, 1)


def _writing(lab: Lab, job: JobHandle, record: Job) -> bool:
    half = [name for name in lab.files(job) if name.startswith("shards/.shard-000001-a001-")]
    return (record.done_shards, record.running_shards, len(half)) == (1, 1, 1)


def _written(lab: Lab, job: JobHandle, record: Job) -> bool:
    whole = [name for name in lab.files(job) if name.startswith("shards/shard-000001-a001-")]
    return (record.done_shards, record.running_shards, len(whole)) == (1, 1, 1)


def _committed(lab: Lab, job: JobHandle, record: Job) -> bool:
    return (record.done_shards, record.running_shards, len(lab.files(job))) == (2, 0, 2)


def _ended(lab: Lab, job: JobHandle, record: Job) -> bool:
    return record.state == "succeeded" and not (lab.settings.results / "jobs" / job.id / "manifest.json").exists()


@pytest.mark.parametrize(
    ("lab", "fault", "left", "reaped"),
    [
        ("sqlite", "claimed:die:2", _claimed, 1),
        ("sqlite", "writing:die:2", _writing, 1),
        ("sqlite", "written:die:2", _written, 1),
        ("postgresql", "written:die:2", _written, 1),
        ("sqlite", "committed:die:2", _committed, 0),
        ("sqlite", "ended:die", _ended, 0),
    ],
    indirect=["lab"],
)
def test_a_worker(lab: Lab, fault: str, left: Callable[[Lab, JobHandle, Job], bool], reaped: int) -> None:
    job = lab.submit()
    assert lab.puppet(fault).wait(120) == -signal.SIGKILL
    assert left(lab, job, job.refresh())
    assert lab.puppet().wait(120) == 0
    assert lab.outcomes(job).count("reaped") == reaped
    assert lab.outcomes(job).count("done") == 6
    assert_complete(lab, job, TWELVE)


@pytest.mark.parametrize("fault", ["writing:die", "submitting:die"])
def test_a_submit(lab: Lab, tmp_path: Path, fault: str) -> None:
    """Between its folder and its row: an orphan that gc takes when it is old, and never the folder of the next one."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(12)))
    flags = ["--model", "tiny-arithmetic", "-G", "2", "--seed", "1", "--shard-size", "2", "--idempotency-key", "k"]
    command = ["submit", str(prompts), *flags, "--detach"]
    assert lab.puppet(fault, command=command).wait(120) == -signal.SIGKILL
    (orphan,) = (lab.settings.results / "jobs").iterdir()
    assert lab.client.jobs() == []
    again = lab.puppet(command=command)
    assert again.wait(120) == 0, again.words
    (job,) = lab.client.jobs()
    assert job.id != orphan.name
    assert collect(lab.client.store, lab.settings).folders == 0, "it may still be at work"
    for path in (*orphan.rglob("*"), orphan):
        os.utime(path, (then := time.time() - ORPHAN_AGE - 60, then))
    assert lab.puppet().wait(120) == 0
    assert collect(lab.client.store, lab.settings).folders == 1
    assert not orphan.exists()
    assert_complete(lab, job, TWELVE)


def test_a_shard_that_kills_its_worker_each_time(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails after its limit, the dead one's last words kept, and is no reason to give up the others."""
    lab.settings = lab.settings.model_copy(update={"max_failures": 2})
    lab.client.close()
    lab.client = Client(lab.settings)
    python = tmp_path / "python"  # the child of a waiting client, as a puppet without faults
    python.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} -P -m tests.faults.puppet {tmp_path} -- "$@"\n')
    python.chmod(0o755)
    prompts = ["die first", "p1", "crash then", "p3", "p4", "p5"]
    job = lab.submit(*prompts)
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(python))
        patch.setattr("jobs.child._DEATHS_IN_A_ROW", 3)
        assert job.wait(timeout=120).state == "failed"
    failed = lab.client.store.shards(job.id, states=["failed"])
    assert [(shard.index, shard.failures) for shard in failed] == [(0, 2), (1, 2)]
    assert lab.outcomes(job) == ["reaped"] * 4 + ["done"]
    assert all("died (process " in (attempt.error or "") for attempt in lab.client.store.attempts(job.id)[:4])
    assert "Segmentation fault" in (failed[1].error or "")
    assert_complete(lab, job, scripted_rows(prompts)[8:], state="failed")
