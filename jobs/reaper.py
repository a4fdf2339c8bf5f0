"""Takes shards back from workers that died or stopped answering, and seals jobs whose feeders did.

Anyone alive may look, at any time.

A worker's death is seen by its heartbeat standing still, measured by the onlooker's own monotonic clock between its own
looks: clocks of different machines are never compared. A reaper that could not look for half a lease, stopped itself or
with the database away, starts counting anew: hearts could not be heard. Nor can they where nothing can be written while
reading goes on, as on a locked SQLite or a full disk: before it holds stillness against anyone, the reaper itself must
get to write. Only a process of this host is known to be dead at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from jobs.abandoned import Abandoned
from jobs.logs import last_words
from jobs.processes import is_dead
from jobs.records import Shard, Worker
from jobs.store import Store

_Key = tuple[str, int, int]  # (job, shard, attempt)


class Reaper:
    """Remembers, from one look to the next, since when each running shard's heartbeat has stood still."""

    def __init__(
        self,
        store: Store,
        lease_seconds: float,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
        root: Path | None = None,
    ) -> None:
        """`limit`: the failures at which a shard stays failed; being taken back is one.

        `root`: the results root, where logs hold the last words of those who died.
        """
        self._store = store
        self._lease = lease_seconds
        self._limit = limit
        self._clock = clock
        self._root = root
        self._abandoned = Abandoned(store, lease_seconds)
        self._seen: dict[_Key, tuple[int, float]] = {}  # heartbeat, and when it was first seen at this count
        self._last_look = clock()

    def look(self) -> int:
        """Take back what is lost, remove the rows of dead workers; how many shards were taken back."""
        still = [self._last_look - since for _, since in self._seen.values()]
        if max([*still, self._abandoned.oldest(self._last_look)]) > self._lease / 4:
            self._store.touch()  # as long as this waits or fails, no heartbeat gets through either
        dead = [worker for worker in self._store.workers() if is_dead(worker)]  # before their shards are read
        running = self._store.running_beats()
        at = self._clock()
        if at - self._last_look > self._lease / 2:
            self._seen.clear()
            self._abandoned.forget()
        self._last_look = at
        seen: dict[_Key, tuple[int, float]] = {}
        reaped = 0
        for shard, worker in running:
            key = (shard.job_id, shard.index, shard.attempt)
            beat, since = self._seen.get(key, (shard.beat, at))
            seen[key] = (beat, since) if beat == shard.beat else (shard.beat, at)
            reason = self._reason(shard, worker, at - seen[key][1])
            if reason is not None:
                reaped += self._store.reap(*key, beat=shard.beat, reason=reason, limit=self._limit)
        self._seen = seen
        self._abandoned.look(at)
        for worker in dead:
            self._store.forget_worker(worker.id)
        return reaped

    def _reason(self, shard: Shard, worker: Worker | None, still: float) -> str | None:
        if worker is not None and is_dead(worker):
            died = f"worker {worker.id} died (process {worker.pid} on {worker.host} is gone)"
            key = (shard.job_id, shard.index, shard.attempt)
            words = last_words(self._root, worker.id, *key) if self._root is not None else ""
            return f"{died}; its last words: {words}" if words else died
        if still >= self._lease:
            return f"worker {shard.worker_id} has not answered for {still:.0f} s"
        return None
