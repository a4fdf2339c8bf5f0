"""The queue's benchmark works, and notices what is wrong. Nothing here looks at a clock."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import crowd, lanes, queue, system, throughput
from benchmarks.lanes import Lane, Servers
from benchmarks.wrong import Wrong
from jobs import Client
from jobs.records import Claim
from jobs.states import ShardState
from jobs.store import Store


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    made = Lane("sqlite", tmp_path / "home")
    Store.open(made.settings).close()
    return made


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


def test_a_quick_run_makes_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["redis-p50", "claims-sqlite"]
    assert queue.main(["--quick", "--only", *names]) == 0
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert [row["name"] for row in report["rows"]] == names
    assert all(math.isfinite(row["measured"]) and row["verdict"] is None for row in report["rows"]), report["rows"]
    assert report["measured"]["claims, sqlite"]["finished"] == queue.QUICK.crowd[1]
    assert "jobs_open" in out and "shards_pending" in out, "the plans are shown"


def test_the_system_is_measured_over_what_the_core_makes(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"pairs": 1, "shards": 2, "shard_prompts": 2, "max_new_tokens": 4}
    report = system.overhead(lane, **sizes)
    assert report["tokens"] > 2 * 2 * system.G
    assert math.isfinite(report["percent"])
    really = Client.submit
    monkeypatch.setattr(Client, "submit", lambda self, prompts, **spec: really(self, prompts=prompts[::-1], **spec))
    with pytest.raises(Wrong, match="other sequences"):
        system.overhead(lane, **sizes)


def test_small_jobs_and_workers_are_counted(lane: Lane) -> None:
    small = throughput.small_jobs(lane, 6)
    assert small["jobs"] == 6 and small["per_second"] > 0 < small["resident_mib"]
    seconds = throughput.scaling(lane, (1,), shards=2, shard_seconds=0.1)["seconds"]
    assert seconds[1] >= 0.2


@pytest.mark.parametrize(
    ("value", "at_least", "at_most", "untold"), [(2.0, "reached", "missed", None), (0.5, "missed", "reached", None)]
)
def test_verdicts(value: float, at_least: str, at_most: str, untold: None) -> None:
    upward = queue.Row("", 1.5, True, "x", queue.embedded_latency)
    assert upward.verdict(value) == at_least
    assert replace(upward, at_least=False).verdict(value) == at_most
    assert replace(upward, bar=None).verdict(value) is untold


def test_what_fails_costs_its_row_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(session: queue.Session, name: str, *args: object, **options: object) -> dict[str, float]:
        if name == "latency, bare":
            raise Wrong("There is no Redis.")
        return {"p50": 1.0, "p99": 120.0, "max": 130.0}

    monkeypatch.setattr(queue.Session, "measure", measure)
    monkeypatch.setattr(Servers, "redis", lambda self: "redis://")
    assert queue.main(["--only", "redis-p50", "sqlite-p99"]) == 1
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert (rows["redis-p50"]["verdict"], rows["redis-p50"]["measured"]) == ("failed", None)
    assert rows["redis-p50"]["beside"] == "There is no Redis."
    assert rows["sqlite-p99"]["verdict"] == "missed"


def test_a_crowd_is_what_it_says(lane: Lane) -> None:
    store = Store.open(lane.settings)
    crowd.fill(store, pending=100, finished=30)
    jobs = store.jobs()
    assert sum(job.pending_shards for job in jobs) == 100
    assert sum(job.done_shards for job in jobs) == 30
    assert len({job.owner for job in jobs if job.pending_shards}) == crowd.OWNERS
    done = next(job for job in jobs if job.done_shards)
    assert len(store.attempts(done.id)) == len(store.shards(done.id, states=[ShardState.DONE])) == 30
    store.close()


def test_claims_that_are_not_each_made_once_are_noticed(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(lane.settings)
    crowd.fill(store, pending=100, finished=0)
    crowd._check(store)
    claim = store.claim("w", queues=["default"], model=None, age_limit=None)
    assert isinstance(claim, Claim)
    store.hand_back(claim, "again")
    crowd._claim_and_commit(store, "w")
    with pytest.raises(Wrong, match="claimed twice"):
        crowd._check(store)
    store.close()


def test_a_worker_that_dies_is_noticed(lane: Lane) -> None:
    with pytest.raises(Wrong, match="Workers ended with"), lanes.workers(lane, 1) as [process]:
        process.kill()
        process.wait()


def test_servers_are_real_and_lanes_are_apart(servers: Servers) -> None:
    first, second = servers.lane("redis"), servers.lane("redis")
    assert first.redis_url == second.redis_url != ""
    assert first.database_url != second.database_url
    store = Store.open(first.settings)
    assert store.dialect == "postgresql"
    store.close()
