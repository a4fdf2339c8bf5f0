"""States of jobs and shards, and the one table of edges between them (drawn in the README).

A job's final state follows from its shards: any failed → failed, else any cancelled → cancelled, else succeeded.
"""

from __future__ import annotations

from enum import StrEnum

from jobs.text import clean_line, plural

_WHY = 500  # characters of a reason that is told


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class ShardState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (ShardState.DONE, ShardState.FAILED, ShardState.CANCELLED)


def broken_off(prompts: int, why: str) -> str:
    """What a job says that got no more than these prompts, though more were to come. One line, whatever `why` holds."""
    line = clean_line(" ".join(why.split()))
    return (
        f"its prompts broke off after {plural(prompts, 'prompt')}: {line if len(line) <= _WHY else line[:_WHY] + '…'}"
    )


_J, _S = JobState, ShardState

JOB_EDGES: frozenset[tuple[JobState, JobState]] = frozenset(
    {
        (_J.QUEUED, _J.RUNNING),  # first claim
        (_J.QUEUED, _J.CANCELLED),  # cancel with nothing running
        (_J.RUNNING, _J.SUCCEEDED),
        (_J.RUNNING, _J.FAILED),
        (_J.RUNNING, _J.CANCELLED),  # cancel between two shards
        (_J.RUNNING, _J.CANCELLING),
        (_J.CANCELLING, _J.SUCCEEDED),  # the last running shard committed before it saw the cancel
        (_J.CANCELLING, _J.FAILED),
        (_J.CANCELLING, _J.CANCELLED),
        (_J.FAILED, _J.QUEUED),  # retry
        (_J.CANCELLED, _J.QUEUED),  # retry
    }
)

SHARD_EDGES: frozenset[tuple[ShardState, ShardState]] = frozenset(
    {
        (_S.PENDING, _S.RUNNING),  # claim
        (_S.PENDING, _S.CANCELLED),
        (_S.PENDING, _S.FAILED),  # the job's own error
        (_S.RUNNING, _S.DONE),
        (_S.RUNNING, _S.FAILED),
        (_S.RUNNING, _S.CANCELLED),
        (_S.RUNNING, _S.PENDING),  # handed back, or taken back by the reaper
        (_S.FAILED, _S.PENDING),  # retry
        (_S.CANCELLED, _S.PENDING),  # retry
    }
)
