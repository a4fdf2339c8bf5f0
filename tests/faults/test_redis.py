"""Redis goes away, comes back empty, or hangs: that costs looks, never a shard. Real servers, real workers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.doorbell import load_ringer
from jobs.processes import this_process
from jobs.settings import Settings
from tests.lanes.conftest import waiting_rings
from tests.lanes.lane import SHARDS, Lane
from tests.redis_server import RedisServer

SOON = 10.0  # seconds that nothing here may take, however busy the machine; none of it should take three


@pytest.fixture
def lane(own_redis: RedisServer, tmp_path: Path, migrated_file: Path) -> Iterator[Lane]:
    (tmp_path / "home").mkdir()
    shutil.copy(migrated_file, tmp_path / "home" / "seqproc.db")
    settings = Settings(home=tmp_path / "home", redis_url=own_redis.url, heartbeat_seconds=0.1, poll_seconds=0.2)
    made = Lane(settings, tmp_path)
    yield made
    made.close()


def hears_again(lane: Lane) -> None:
    """Wait until a ring is taken by a worker."""
    load_ringer(lane.settings.redis_url, lane.store.store_id)("default", 1)
    lane.until(lambda: waiting_rings(lane) == 0)


def test_stopped_during_work(lane: Lane, own_redis: RedisServer) -> None:
    worker = lane.start()
    hears_again(lane)
    lane.hold()
    job = lane.submit()
    lane.until(lambda: job.refresh().running_shards == 1)
    own_redis.stop()
    lane.release()
    lane.until_done(job)
    later = lane.submit()
    assert later.unrung is not None
    assert "refused" in later.unrung
    assert "s3cret" not in later.unrung
    lane.until_done(later)
    own_redis.start()
    hears_again(lane)
    worker.leave()


def test_restarted_empty(lane: Lane, own_redis: RedisServer) -> None:
    lane.start()
    lane.hold()
    jobs = [lane.submit() for _ in range(2)]
    lane.until(lambda: sum(job.refresh().running_shards for job in jobs) == 1)
    load_ringer(lane.settings.redis_url, lane.store.store_id)("default", 5)
    own_redis.stop()
    own_redis.start()
    assert waiting_rings(lane) == 0
    lane.release()
    for job in jobs:
        lane.until_done(job)
    hears_again(lane)


def test_hung_during_submit(lane: Lane, own_redis: RedisServer) -> None:
    lane.start()
    hears_again(lane)
    own_redis.freeze()
    began = time.monotonic()
    job = lane.submit()
    assert time.monotonic() - began < SOON
    assert job.unrung is not None
    assert job.unrung.startswith("Redis ")
    lane.until_done(job)
    own_redis.thaw()
    hears_again(lane)


def test_hung_during_work(lane: Lane, own_redis: RedisServer) -> None:
    lane.start()
    lane.store.register_worker("idle", this_process(), queues=["default"])  # whom every claim would ring
    lane.hold()
    job = lane.submit()
    lane.until(lambda: job.refresh().running_shards == 1)
    own_redis.freeze()
    lane.release()
    lane.until_done(job)
    assert [attempt.outcome for attempt in lane.store.attempts(job.id)] == ["done"] * SHARDS
    own_redis.thaw()
    hears_again(lane)


@pytest.mark.parametrize("fault", ["stopped", "hung"])
def test_a_worker_under_load_leaves_at_once_without_redis(lane: Lane, own_redis: RedisServer, fault: str) -> None:
    worker = lane.start()
    hears_again(lane)
    lane.hold()
    job = lane.submit()
    lane.until(lambda: job.refresh().running_shards == 1)
    own_redis.stop() if fault == "stopped" else own_redis.freeze()
    began = time.monotonic()
    worker.leave()
    assert time.monotonic() - began < SOON
    assert job.refresh().pending_shards == SHARDS
    assert lane.store.workers() == []
    lane.release()
    lane.start()  # it comes up without Redis, too
    lane.until_done(job)
