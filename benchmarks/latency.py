"""From a submit that is committed to the claim of its shard on an idle worker, beside bare Celery's delay."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import lanes
from benchmarks.lanes import Lane
from jobs import Client
from jobs.records import Job
from jobs.store.creation import Creation

_WORKERS = 2  # idle, beside the process that submits
_ASIDE = 0.02  # seconds until this process looks how it went: it would compete with the worker for the cores
_PAUSES = (0.05, 0.15)  # seconds between two samples: in step with nobody's poll


def ours(lane: Lane, samples: int) -> dict[str, Any]:
    """Milliseconds from the commit of a submit to the commit of the claim, each by a process of its own."""
    waits = []
    with lanes.workers(lane, _WORKERS), Client(lane.settings) as client, _commits_noted() as committed:
        for _ in range(samples):
            job = lane.submit(client)
            time.sleep(_ASIDE)
            lanes.run_all(client, [job])
            waits.append(lane.claims()[job.id, 0] - committed[job.id])
            time.sleep(random.uniform(*_PAUSES))
    return _quantiles(waits)


def bare(redis_url: str, samples: int) -> dict[str, Any]:
    """Milliseconds from before `delay` to the first line of the task."""
    from benchmarks import bare

    waits = []
    with bare.worker(redis_url) as file:
        for n in range(samples):
            name, sent = f"n{n}", time.monotonic()
            bare.note.delay(name)
            time.sleep(_ASIDE)
            lanes.until(lambda name=name: name in bare.noted(file), "a bare task", every=0.002)
            waits.append(bare.noted(file)[name] - sent)
            time.sleep(random.uniform(*_PAUSES))
    return _quantiles(waits)


@contextmanager
def _commits_noted() -> Iterator[dict[str, float]]:
    """Job → when its transaction was committed by this process, in monotonic seconds."""
    committed: dict[str, float] = {}
    really = Creation.create_job

    def create_job(self: Creation, *args: Any, **options: Any) -> tuple[Job, bool]:
        made = really(self, *args, **options)
        committed[made[0].id] = time.monotonic()
        return made

    Creation.create_job = create_job  # type: ignore[method-assign]
    try:
        yield committed
    finally:
        Creation.create_job = really  # type: ignore[method-assign]


def _quantiles(waits: list[float]) -> dict[str, Any]:
    waits = sorted(1e3 * wait for wait in waits)
    last = len(waits) - 1
    quantiles = {f"p{q}": waits[min(last, round(q / 100 * len(waits)))] for q in (50, 90, 99)}
    return {"samples": len(waits), **quantiles, "max": waits[-1], "mean": statistics.fmean(waits)}
