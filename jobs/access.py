"""What a client needs to do anything: the same over the database and folder of this machine, or over HTTP.

`JobHandle` and `Client` are written once, over this. Both ways raise the same errors with the same sentences; the one
over HTTP also raises Unreachable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from jobs.presence import WorkerStatus
from jobs.progress import Running
from jobs.records import Attempt, Job, Shard, Webhook
from jobs.results import JobResults, ResultFile
from jobs.snapshot import Item
from jobs.spec import JobSpec
from jobs.states import ShardState
from jobs.submit import Plan, Submitted

OnPrompt = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Retried:
    """The job, queued again; `unrung` is why idle workers could not be rung, if so."""

    job: Job
    unrung: str | None


class Helper(Protocol):
    """What a client does for a job that it waits for."""

    def look(self) -> None:
        """Before each look at the job."""

    def help(self, job: Job) -> None:
        """After a look at a job that has not ended. Raises SeqprocError if it cannot go on."""

    def finish(self) -> None:
        """The job has ended."""


class Access(Protocol):
    """One way to the jobs of one database and results folder."""

    def close(self) -> None: ...

    def parse(self, fields: dict[str, Any]) -> JobSpec: ...

    def submit(
        self, spec: JobSpec, *, prompts: Iterable[Any] | None, stdin: BinaryIO | None, on_prompt: OnPrompt | None
    ) -> Submitted: ...

    def plan(self, spec: JobSpec, *, prompts: Iterable[Any] | None, stdin: BinaryIO | None) -> Plan: ...

    def open(self, spec: JobSpec) -> Submitted:
        """A job without prompts, to be fed."""
        ...

    def append(self, job_id: str, first: int, items: Sequence[Item]) -> Job:
        """Add its next prompts, or the first few of them: how many it has now its record says.

        Called again with the same ones, after a lost reply, it adds them once. No items: a heartbeat.
        """
        ...

    def seal(self, job_id: str, truncated: str | None) -> Job: ...

    def job(self, id_or_prefix: str) -> Job: ...

    def look(self, job_id: str) -> tuple[Job, Running]:
        """The job, and what its running shards have made, of one moment."""
        ...

    def jobs(self, **filters: Any) -> list[Job]: ...

    def workers(self) -> list[WorkerStatus]: ...

    def helper(self, job: Job, *, start_worker: bool, local: bool) -> Helper: ...

    def cancel(self, job_id: str) -> Job: ...

    def retry(self, job_id: str, *, failed_only: bool) -> Retried: ...

    def delete(self, job_id: str) -> None: ...

    def shards(
        self, job_id: str, *, states: Collection[ShardState] | None = None, limit: int | None = None
    ) -> list[Shard]: ...

    def done_files(self, job_id: str, *, after: int, limit: int) -> list[ResultFile]:
        """The files of the first shards that were done after the `after`-th, in the order in which they were."""
        ...

    def attempts(self, job_id: str) -> list[Attempt]: ...

    def webhooks(self, job_id: str) -> list[Webhook]: ...

    def put_reward(self, job_id: str, file: ResultFile, name: str, values: list[float | None]) -> None:
        """Store a reward of one shard's sequences. Raises WrongState if the shard's file is not this one."""
        ...

    def results(self, job_id: str) -> JobResults: ...

    def logs(self, job_id: str, *, follow: bool) -> Iterator[dict[str, Any]]: ...
