"""The system's vocabulary: what the store hands out and takes in. Plain frozen data, no behaviour but derived values.

Times are seconds since the epoch by the database's clock. Token counts are response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jobs.states import JobState, ShardState

Moment = tuple[float, str]
"""When a job was created, and its id: its place among all jobs, of which the newest comes first."""


class LostSpec(dict[str, Any]):
    """Stands where a job's spec should be if its row holds none: empty, and each field of it None."""

    def __init__(self, stored: object) -> None:
        super().__init__()
        self.stored = stored  # what the row holds instead

    def __missing__(self, field: str) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Job:
    """A row of `jobs`. Totals count done shards only; every one changes in the transaction that changes a shard."""

    id: str
    owner: str
    kind: str
    model: str
    adapter: str | None
    name: str | None
    labels: dict[str, str]
    queue: str
    priority: int
    spec: dict[str, Any]  # the resolved JobSpec without its prompts; a LostSpec if the row was damaged
    state: JobState
    sealed: bool
    snapshot_digest: str
    num_prompts: int
    num_sequences: int  # num_prompts × G
    num_shards: int
    pending_shards: int
    running_shards: int
    done_shards: int
    failed_shards: int
    cancelled_shards: int
    done_sequences: int
    done_tokens: int
    prompt_errors: int
    identity: dict[str, str] | None  # what the model is, pinned by the first worker that loaded it
    error: str | None  # why the job failed
    notice: str | None  # the last thing a person should know though it failed nothing ("worker X cannot load …")
    revision: int  # raised by every change that the manifest shows
    manifest_revision: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    ttl: float | None  # seconds that gc keeps the job after its end
    truncated: str | None  # why its prompts ended before their producer did; of a job that was fed them


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs of a list, newest first."""

    jobs: list[Job]
    next: Moment | None  # before which the list goes on: how far back a page looked that is not full; None: to its end


class StateCounts(dict[JobState, int]):
    """How many jobs are in each state; of a state in `at_least` there may be more, they were not all counted."""

    def __init__(self, counts: dict[JobState, int], *, at_least: frozenset[JobState]) -> None:
        super().__init__(counts)
        self.at_least = at_least


@dataclass(frozen=True, slots=True)
class Shard:
    """A row of `shards`: the prompts [start, stop) of one snapshot segment, a batching unit."""

    job_id: str
    index: int
    segment: int
    start: int
    stop: int
    first_prompt: int  # prompt_index of row `start`
    state: ShardState
    attempt: int  # raised by every claim, lowered by nothing
    failures: int  # held against the limit
    worker_id: str | None
    beat: int
    running_sequences: int  # progress of the running attempt, from its heartbeat
    running_tokens: int
    file: str | None  # relative to the job's folder; set when done
    errors_file: str | None
    sha256: str | None
    bytes: int
    sequences: int
    tokens: int
    prompt_errors: int
    error: str | None
    claimed_at: float | None
    ended_at: float | None
    done_order: int | None  # 1 for the first of the job's shards that was done


class Committed(NamedTuple):
    """The file of a done shard. Another attempt's file has another name."""

    shard: int
    file: str  # relative to the job's folder
    tokens: int


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A row of `sidecars`: a later measurement of one shard's sequences, in a file with a row for each of them.

    A reader sees its column `reward`, say, as `reward_math_answer`: the kind, and the name.
    """

    job_id: str
    kind: str  # of the measurement, and the name of its column in the file
    name: str
    shard: int
    of_sha256: str  # of the shard's file that was measured
    file: str  # relative to the job's folder
    sha256: str
    bytes: int
    rows: int
    unjudged: int  # of the rows: those without a value
    created_at: float | None = None  # None: not stored yet

    @property
    def column(self) -> str:
        """Its name for readers."""
        return f"{self.kind}_{self.name}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of `attempts`: one execution of one shard. `outcome` is None while it runs."""

    job_id: str
    shard: int
    attempt: int
    worker_id: str
    claimed_at: float
    ended_at: float | None
    outcome: str | None  # done | failed | handed back | reaped | cancelled
    error: str | None
    tokens: int
    details: dict[str, Any] | None  # batch settings and versions, for the manifest


@dataclass(frozen=True, slots=True)
class Span:
    """When an attempt ran, and what it made: enough of it to be drawn."""

    worker_id: str
    shard: int
    attempt: int
    claimed_at: float
    ended_at: float | None
    outcome: str | None  # as of an Attempt
    tokens: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A row of `workers`: a process that claims. Removed when it leaves in order."""

    id: str
    host: str
    pid: int
    process_started: float  # the operating system's start time of that pid, so that a reused pid is not mistaken for it
    boot_id: str
    queues: list[str]
    device: str
    model: str | None
    paused: str | None
    job_id: str | None
    shard: int | None
    tokens_per_second: float | None
    memory_used: int | None  # bytes of its device, by whomever
    memory_total: int | None
    beat: int
    started_at: float
    seen_at: float


@dataclass(frozen=True, slots=True)
class Load:
    """What stands in one queue in one state: jobs that have not ended, and their shards."""

    queue: str
    state: JobState
    jobs: int
    pending_shards: int
    running_shards: int
    done_shards: int
    failed_shards: int
    cancelled_shards: int
    waited: float  # seconds for which the least lately served job with a pending shard has not been; 0 without one


@dataclass(frozen=True, slots=True)
class Webhook:
    """A row of `webhooks`: an end of a job that is to be told, or was. Given up if neither delivered nor due."""

    job_id: str
    revision: int  # the job's, at that end
    url: str
    tries: int  # begun
    next_try_at: float | None
    delivered_at: float | None
    error: str | None  # of the last try
    created_at: float

    @property
    def event_id(self) -> str:
        """The same for every try, so that whoever is told can see that it was told twice."""
        return f"{self.job_id}-{self.revision}"


@dataclass(frozen=True, slots=True)
class Feed:
    """A job that is not sealed, and how whoever feeds it is."""

    job_id: str
    num_prompts: int
    fed: int  # heartbeats
    feeder: dict[str, Any] | None  # the fields of a `ProcessName`, where it is known


@dataclass(frozen=True, slots=True)
class ShardRange:
    """A shard to be: rows [start, stop) of a segment."""

    segment: int
    start: int
    stop: int
    first_prompt: int


@dataclass(frozen=True, slots=True)
class NewJob:
    """What submit commits, in one transaction with the shards."""

    id: str
    owner: str
    spec: dict[str, Any]
    spec_digest: str
    snapshot_digest: str
    num_prompts: int
    samples: int  # G
    idempotency_key: str | None = None
    sealed: bool = True
    feeder: dict[str, Any] | None = None  # the `ProcessName` that feeds it prompts, of one that is not sealed


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one shard, until the fence (job, shard, attempt, running) no longer holds."""

    job: Job
    shard: Shard
    worker_id: str
    aged: bool = False  # taken out of its turn, because its job had not been served for the age limit
    known: bool = True  # the worker has a row, and it now names this shard

    @property
    def key(self) -> tuple[str, int, int]:
        return (self.job.id, self.shard.index, self.shard.attempt)


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What a finished attempt commits; its files are already durable on disk."""

    file: str
    errors_file: str | None
    sha256: str
    bytes: int
    sequences: int
    tokens: int
    prompt_errors: int
    details: dict[str, Any] = field(default_factory=dict)
    sidecars: tuple[Sidecar, ...] = ()


@dataclass(frozen=True, slots=True)
class Beat:
    """The database's answer to a heartbeat."""

    cancel: bool  # the job is being cancelled: stop and hand back
    lost: bool  # the fence no longer holds: stop and throw away
