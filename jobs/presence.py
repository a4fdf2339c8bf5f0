"""How a worker is, as far as its row and this host can tell.

Only a process of this very host can be known to be dead; of any other nothing is known but for how long it was silent.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING

from jobs.processes import is_dead
from jobs.records import Worker

if TYPE_CHECKING:
    from jobs.store import Store

SILENT_SECONDS = 60.0  # workers are seen about every second, so one silent for so long is not counted on


class Presence(StrEnum):
    """What people are shown of a worker."""

    WORKING = "working"
    IDLE = "idle"
    PAUSED = "paused"  # leaves something alone; `Worker.paused` says why
    SILENT = "silent"
    DEAD = "dead"

    @property
    def counted_on(self) -> bool:
        """Whether work may be left to it."""
        return self not in (Presence.SILENT, Presence.DEAD)


def presence(worker: Worker, now: float) -> Presence:
    """`now`: `Store.clock`, for `seen_at` was taken from it."""
    if is_dead(worker):
        return Presence.DEAD
    if now - worker.seen_at >= SILENT_SECONDS:
        return Presence.SILENT
    if worker.job_id is not None:
        return Presence.WORKING
    return Presence.PAUSED if worker.paused else Presence.IDLE


@dataclass(frozen=True, slots=True)
class WorkerStatus(Worker):
    """A worker, and how it is: what `seqproc workers --json` prints."""

    state: Presence
    seen_seconds_ago: float

    @classmethod
    def of(cls, worker: Worker, now: float) -> WorkerStatus:
        """`now` as for `presence`."""
        row = {field.name: getattr(worker, field.name) for field in fields(Worker)}
        return cls(**row, state=presence(worker, now), seen_seconds_ago=max(0.0, now - worker.seen_at))


def alive(store: Store) -> list[Worker]:
    """The workers that work may be left to, paused ones included."""
    now = store.clock()
    return [worker for worker in store.workers() if presence(worker, now).counted_on]


def serving(store: Store, queue: str) -> bool:
    """Whether a worker of this queue is alive."""
    return any(queue in worker.queues for worker in alive(store))
