"""Several workers on one job, and a thousand small jobs through one worker."""

from __future__ import annotations

import time
from typing import Any

from benchmarks import lanes
from benchmarks.lanes import Lane
from jobs import Client


def scaling(lane: Lane, counts: tuple[int, ...], *, shards: int, shard_seconds: float) -> dict[str, Any]:
    """Wall seconds of one job from its submit to its end, by so many workers whose engine sleeps."""
    seconds: dict[int, float] = {}
    for count in counts:
        with lanes.workers(lane, count, shard_seconds=shard_seconds), Client(lane.settings) as client:
            began = time.monotonic()
            lanes.run_all(client, [lane.submit(client, shards)])
            seconds[count] = time.monotonic() - began
    return {"shards": shards, "shard_seconds": shard_seconds, "seconds": seconds}


def small_jobs(lane: Lane, count: int) -> dict[str, Any]:
    """A backlog of jobs of one shard through one worker: claims per second, and what its memory did meanwhile."""
    with Client(lane.settings) as client:
        began = time.monotonic()
        submitted = [lane.submit(client) for _ in range(count)]
        submits_per_second = count / (time.monotonic() - began)
        samples = []
        with lanes.workers(lane, 1, warm=False) as [process]:
            while (claimed := len(lane.claims())) < count:
                samples.append((claimed, _resident_mib(process.pid)))
                time.sleep(0.05)
            lanes.run_all(client, submitted)
            samples.append((count, _resident_mib(process.pid)))
    times = lane.claims().values()
    # Caches and allocators fill with the first jobs; a leak goes on.
    settled = next(resident for claimed, resident in samples if claimed >= count / 5)
    return {
        "jobs": count,
        "per_second": (count - 1) / (max(times) - min(times)),
        "submits_per_second": submits_per_second,
        "resident_mib": samples[-1][1],
        "growth_mib": samples[-1][1] - settled,
    }


def bare_tasks(redis_url: str, count: int) -> dict[str, Any]:
    """Bare Celery's tasks through one worker, from the first `delay` to the last beginning."""
    from benchmarks import bare

    with bare.worker(redis_url) as file:
        began = time.monotonic()
        for n in range(count):
            bare.note.delay(f"n{n}")
        lanes.until(lambda: f"n{count - 1}" in bare.noted(file), "the bare tasks")
        noted = bare.noted(file)
        return {"tasks": count, "per_second": count / (max(noted.values()) - began)}


def _resident_mib(pid: int) -> float:
    import psutil

    return float(psutil.Process(pid).memory_info().rss) / 2**20
