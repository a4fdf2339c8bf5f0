"""How far a job is and how fast it goes, its running shards included, from what their workers last said."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from jobs.progress import seconds_left
from jobs.records import Job, Shard, Worker
from jobs.store import Store

Running = dict[str, list[tuple[Shard, Worker | None]]]


@dataclass(frozen=True, slots=True)
class Pace:
    """Sequences and tokens made so far; tokens per second if workers tell, and from it the seconds that are left."""

    job: Job
    sequences: int
    tokens: int
    tokens_per_second: float | None

    @classmethod
    def of(cls, job: Job, running: list[tuple[Shard, Worker | None]]) -> Pace:
        speeds = [
            worker.tokens_per_second
            for shard, worker in running
            if worker is not None and worker.job_id == job.id and worker.tokens_per_second is not None
        ]
        return cls(
            job=job,
            sequences=job.done_sequences + sum(shard.running_sequences for shard, _ in running),
            tokens=job.done_tokens + sum(shard.running_tokens for shard, _ in running),
            tokens_per_second=sum(speeds) if speeds else None,
        )

    @property
    def eta_seconds(self) -> float | None:
        """As `seconds_left`; None also where all is made and only not committed yet."""
        if self.sequences >= self.job.num_sequences:
            return None
        return seconds_left(self.job, self.sequences, self.tokens, self.tokens_per_second)

    @property
    def took(self) -> float | None:
        """Seconds from start to end."""
        job = self.job
        return None if job.started_at is None or job.ended_at is None else job.ended_at - job.started_at


def running(store: Store) -> Running:
    """The running shards of each job that has some, with their workers; in one look, whatever the number of jobs."""
    found: Running = defaultdict(list)
    for shard, worker in store.running_beats():
        found[shard.job_id].append((shard, worker))
    return found
