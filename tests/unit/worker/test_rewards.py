"""Rewards that a job asks for: judged with its shards and committed with them, and never the end of one."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.errors import SpecError
from jobs.manifest import verify
from jobs.rewards.judge import Judges
from jobs.spec import JobSpec
from tests.unit.worker.test_drain import Bench, bench  # noqa: F401

SOURCE = """
import os, time
from jobs.rewards import reward

@reward("odd", columns=("prompt_index", "sample_index"), seconds=1)
def odd(row):
    match (row["prompt_index"], row["sample_index"]):
        case (0, 0):
            while True:
                pass
        case (1, 1):
            os._exit(1)
        case (2, 0):
            raise ValueError("no")
    return row["prompt_index"] / 4

@reward("slow", seconds=100)
def slow(row):
    time.sleep(100)
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that brings two rewards; the folder with its metadata."""
    site = tmp_path / "site"
    metadata = site / "odd_rewards-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "odd_rewards.py").write_text(SOURCE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-rewards\nVersion: 1.0\n")
    names = "".join(f"{name} = odd_rewards:{name}\n" for name in ("odd", "slow"))
    (metadata / "entry_points.txt").write_text(f"[seqproc.rewards]\n{names}")
    monkeypatch.syspath_prepend(site)
    return metadata


def values(job: Any, name: str) -> list[float | None]:
    return [row[f"reward_{name}"] for row in job.rows()]


def test_committed_with_the_shards(bench: Bench, odd: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    job = bench.submit("p0", "p1", "p2", "poison", rewards=["odd", "tag_format"])
    before = set(psutil.Process().children())
    assert bench.drain.once() == 2
    assert job.state == "succeeded"
    assert values(job, "odd") == [None, 0.0, 0.25, None, None, 0.5]
    assert values(job, "tag_format") == [0.0] * 6
    assert [(entry["name"], entry["unjudged"]) for entry in job.manifest()["sidecars"]] == [
        ("odd", 2),
        ("odd", 1),
        ("tag_format", 0),
        ("tag_format", 0),
    ]
    assert verify(bench.client.settings.results / "jobs" / job.id) == []
    told = [record.getMessage() for record in caplog.records]
    assert "reward odd: 1 of 4 sequences not judged: its process took longer than 1 s for it" in told
    assert "reward odd: 1 of 2 sequences not judged: it raised ValueError: no" in told
    assert set(psutil.Process().children()) <= before, "an idle worker keeps no process of theirs"


def test_one_that_is_not_installed_where_the_worker_is(
    bench: Bench,  # noqa: F811
    odd: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = bench.submit("p0", "p1", rewards=["odd", "tag_format"])
    (odd / "entry_points.txt").rename(odd / "gone.txt")
    assert bench.drain.once() == 1
    assert job.state == "succeeded"
    assert values(job, "odd") == [None] * 4 and values(job, "tag_format") == [0.0] * 4
    assert "no reward odd for this shard: there is no reward 'odd'" in caplog.text
    assert [entry["name"] for entry in job.manifest()["sidecars"]] == ["tag_format"], "not judged is not unjudged"
    (odd / "gone.txt").rename(odd / "entry_points.txt")
    made = job.reward("odd")
    assert (made.shards, made.unjudged) == (1, 2)
    assert values(job, "odd") == [None, 0.0, 0.25, None]


def test_a_stop_while_judging_hands_back(bench: Bench, odd: Path) -> None:  # noqa: F811
    job = bench.submit("p0", rewards=["tag_format", "slow"])
    folder = bench.client.settings.results / "jobs" / job.id

    def when_judging() -> None:
        deadline = time.monotonic() + 60
        while not list(folder.glob("sidecars/*tag_format*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        bench.stop.set()

    thread = threading.Thread(target=when_judging)
    thread.start()
    began = time.monotonic()
    bench.drain.once()
    thread.join()
    assert time.monotonic() - began < 60
    [shard] = job.shards()
    assert (shard.state, shard.failures, shard.file) == ("pending", 0, None)
    assert [*folder.glob("shards/*"), *folder.glob("sidecars/*")] == []
    assert job.manifest()["sidecars"] == []


def test_who_comes_too_late_leaves_nothing(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reaper takes the shard while it is judged; another worker's rewards stand, and no file of the first."""
    job = bench.submit("p0", rewards=["tag_format"])
    judge, second, busy = Judges.judge, bench.another("w2"), []

    def reaped(self: Judges, *args: Any) -> Any:
        if not busy:
            busy.append(True)
            store = bench.client.store
            store.reap(job.id, 0, 1, beat=store.shard(job.id, 0).beat, reason="it slept", limit=3)
            assert second.once() == 1
        return judge(self, *args[:2])  # and nobody looks whether the lease is lost

    monkeypatch.setattr(Judges, "judge", reaped)
    bench.drain.once()
    assert job.state == "succeeded"
    [shard] = job.shards()
    assert shard.attempt == 2
    folder = bench.client.settings.results / "jobs" / job.id
    assert len(list(folder.glob("shards/*"))) == len(list(folder.glob("sidecars/*"))) == 1
    assert values(job, "tag_format") == [0.0, 0.0]
    assert verify(folder) == []


def test_the_spec(odd: Path) -> None:
    def spec(**fields: Any) -> JobSpec:
        return JobSpec.parse({"model": "m/m", "prompts": ["a"], **fields})

    assert spec(rewards=["odd", "tag_format", "odd"]).rewards == ("odd", "tag_format")
    with pytest.raises(
        SpecError, match="rewards: there is no reward 'nope'; installed are math_answer, odd, slow, tag"
    ):
        spec(rewards=["odd", "nope"])
    assert JobSpec.of_stored({"model": "m/m", "rewards": ["nope"]}).rewards == ("nope",), "of another machine"
    assert spec(rewards=["odd"]).digest() != spec().digest()
