"""What Prometheus is told of the whole: read from the database at each scrape, the same whoever is asked.

Jobs that have ended are not counted, so a scrape costs what is open, however much was done before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from jobs.presence import alive
from jobs.states import JobState, ShardState
from jobs.store import Store

_OPEN = [state for state in JobState if not state.ended]


class StoreCollector(Collector):
    """The gauges of one database. A scrape raises StoreError if it does not answer: no figures rather than old ones."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[GaugeMetricFamily]:
        load, workers = self._store.load(), alive(self._store)
        depth: Counter[str] = Counter()
        jobs = Counter({state.value: 0 for state in _OPEN})
        shards = Counter({state.value: 0 for state in ShardState})
        for row in load:
            depth[row.queue] += row.pending_shards
            jobs[row.state.value] += row.jobs
            shards.update({state.value: getattr(row, f"{state}_shards") for state in ShardState})
        yield _by("queue", "seqproc_queue_depth", "Shards that wait for a worker.", depth)
        yield _by("state", "seqproc_shards", "Shards of jobs that have not ended.", shards)
        yield _by("state", "seqproc_jobs", "Jobs that have not ended.", jobs)
        yield _one(
            "seqproc_oldest_waiting_seconds",
            "How long the least lately served job with a waiting shard has not been served.",
            max((row.waited for row in load), default=0.0),
        )
        yield _one("seqproc_workers_alive", "Workers that are alive, paused ones included.", len(workers))
        paused = sum(1 for worker in workers if worker.paused)
        yield _one("seqproc_workers_paused", "Workers that are alive and can run nothing for now.", paused)
        speed = sum(worker.tokens_per_second or 0.0 for worker in workers)
        yield _one("seqproc_tokens_per_second", "Tokens that all workers make in a second.", speed)
        waiting = self._store.webhooks_waiting()
        yield _one("seqproc_webhooks_waiting", "Ends of jobs that are still to be told.", waiting)


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _by(label: str, name: str, text: str, values: Counter[str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
