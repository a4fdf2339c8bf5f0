"""Rings through Redis: how many there are, who takes them, and that none of them matters."""

from __future__ import annotations

import re

import pytest
import redis

from jobs import Client
from jobs.doorbell import Doorbell, load_ringer
from jobs.processes import this_process
from tests.lanes.conftest import waiting_rings
from tests.lanes.lane import SHARDS, Lane
from tests.lanes.worker import multiply_rings
from worker.drain import Drain
from worker.engine import Engine
from worker.stop import Stop


def enter(lane: Lane, name: str, *, queue: str = "default", **changes: object) -> None:
    """A worker's row, of nobody who would take a ring."""
    lane.store.register_worker(name, this_process(), queues=[queue])
    lane.store.worker_beat(name, **changes)


def test_a_submit_and_a_retry_ring_once_for_each_idle_worker_and_no_more_often_than_there_is_work(
    rung_lane: Lane,
) -> None:
    rung_lane.submit()
    assert waiting_rings(rung_lane) == 0, "nobody is there to hear it"
    enter(rung_lane, "busy", job_id="0", shard=0)
    enter(rung_lane, "paused", paused="the disk is full")
    enter(rung_lane, "elsewhere", queue="other")
    for name in ("first", "second"):
        enter(rung_lane, name)
    job = rung_lane.submit()
    assert waiting_rings(rung_lane) == 2
    rung_lane.submit(shard_size=100)
    assert waiting_rings(rung_lane) == 3
    job.cancel()
    assert waiting_rings(rung_lane) == 3
    job.retry()
    assert waiting_rings(rung_lane) == 5
    assert waiting_rings(rung_lane, "other") == 0


def test_a_claim_that_leaves_more_rings_once_more(rung_lane: Lane) -> None:
    seen: list[int] = []

    class Counting:
        """Counts rings when a shard begins, and makes nothing."""

        device, loaded = "none", None

        def prepare(self, _job: object) -> dict[str, str]:
            seen.append(waiting_rings(rung_lane))
            raise RuntimeError("enough seen")

    stop = Stop()
    engine: Engine = Counting()  # type: ignore[assignment]
    drain = Drain(rung_lane.store, rung_lane.settings, engine, "me", ["default"], stop)
    drain.doorbell = Doorbell(rung_lane.store, rung_lane.settings, patience=60)  # however busy this machine is
    drain.register()
    rung_lane.submit(shard_size=4)
    assert waiting_rings(rung_lane) == 1, "there is one who could hear it: me"
    enter(rung_lane, "idle")
    drain.once()
    # Three shards, three failures each: with nothing else pending, the last shard's claims do not ring.
    assert seen == [2, 3, 4, 5, 6, 7, 7, 7, 7]


def test_a_ring_that_is_lost_is_made_good_by_the_poll(rung_lane: Lane) -> None:
    rung_lane.start(poll=0.2)
    with Client(rung_lane.settings.model_copy(update={"redis_url": ""})) as silent:
        rung_lane.client, loud = silent, rung_lane.client
        rung_lane.until_done(rung_lane.submit())
        rung_lane.client = loud


def test_every_ring_delivered_five_times_changes_nothing(rung_lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.doorbell.load_ringer", load_ringer)  # put back after the test
    multiply_rings(5)
    for _ in range(2):
        rung_lane.start(rings=5)
    rung_lane.hold()
    jobs = [rung_lane.submit() for _ in range(2)]
    rung_lane.until(lambda: sum(job.refresh().running_shards for job in jobs) == 2)
    assert waiting_rings(rung_lane) > 5
    rung_lane.release()
    for job in jobs:
        rung_lane.until_done(job)
        assert [attempt.outcome for attempt in rung_lane.store.attempts(job.id)] == ["done"] * SHARDS
    rung_lane.until(lambda: waiting_rings(rung_lane) == 0)


def test_a_busy_worker_takes_no_more_than_the_ring_that_was_on_its_way(servers_lane: Lane) -> None:
    servers_lane.start()
    servers_lane.hold()
    job = servers_lane.submit()
    servers_lane.until(lambda: job.refresh().running_shards == 1)
    load_ringer(servers_lane.settings.redis_url, servers_lane.store.store_id)("default", 5)
    with redis.Redis.from_url(servers_lane.settings.redis_url) as server:  # BRPOP waits at most a second
        servers_lane.until(lambda: not any("b" in client["flags"] for client in server.client_list()))
    assert waiting_rings(servers_lane) >= 4
    servers_lane.release()
    servers_lane.until_done(job)
    servers_lane.until(lambda: waiting_rings(servers_lane) == 0)


def test_the_password_of_redis_stands_in_no_log(servers_lane: Lane) -> None:
    worker = servers_lane.start()
    servers_lane.until(lambda: re.search(r"listening for rings at redis://:\*+@127", worker.words()) is not None)
    worker.leave()
    logs = "".join(path.read_text() for path in (servers_lane.settings.results / "logs").iterdir())
    assert "listening for rings" in logs
    assert "s3cret" not in logs + worker.words()
