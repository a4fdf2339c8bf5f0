"""How far a job is: what it has committed, and what its running shards have made beside that."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from jobs.records import Job, Webhook, Worker
from jobs.states import JobState


@dataclass(frozen=True, slots=True)
class Running:
    """What the running shards of a job have made and not committed."""

    sequences: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is, the running shards included. Tokens are response tokens.

    Rates are since the waiting began; of a job that nobody here waits for, what its workers report.
    """

    state: JobState
    sequences: int
    num_sequences: int
    tokens: int
    tokens_per_second: float | None
    eta_seconds: float | None
    done_shards: int
    num_shards: int
    prompt_errors: int
    sealed: bool  # False: prompts may still come, and the numbers are those so far

    @classmethod
    def of(
        cls, job: Job, running: Running, tokens_per_second: float | None = None, eta_seconds: float | None = None
    ) -> Progress:
        """The job's progress with what runs."""
        return cls(
            state=job.state,
            sequences=job.done_sequences + running.sequences,
            num_sequences=job.num_sequences,
            tokens=job.done_tokens + running.tokens,
            tokens_per_second=tokens_per_second,
            eta_seconds=eta_seconds,
            done_shards=job.done_shards,
            num_shards=job.num_shards,
            prompt_errors=job.prompt_errors,
            sealed=job.sealed,
        )

    @classmethod
    def reported(cls, job: Job, running: Running, workers: Iterable[Worker]) -> Progress:
        """The job's progress at the speed that its workers say they have now."""
        speed = sum(worker.tokens_per_second or 0.0 for worker in workers if worker.job_id == job.id) or None
        now = cls.of(job, running, speed)
        left = None if job.state.ended else seconds_left(job, now.sequences, now.tokens, speed)
        return replace(now, eta_seconds=left)


def seconds_left(job: Job, sequences: int, tokens: int, tokens_per_second: float | None) -> float | None:
    """Until the job is done, if each sequence that is left takes as many tokens as those that were made.

    None if nobody makes tokens, nothing was made to go by, or prompts may still come.
    """
    if not tokens_per_second or not sequences or not job.sealed:
        return None
    return (job.num_sequences - sequences) * tokens / sequences / tokens_per_second


@dataclass(frozen=True, slots=True)
class JobStatus(Job):
    """All about a job but its shards: what `seqproc status --json` prints."""

    progress: Progress
    webhooks: list[Webhook]

    @classmethod
    def of(cls, job: Job, progress: Progress, webhooks: list[Webhook]) -> JobStatus:
        return cls(**_row(job), progress=progress, webhooks=webhooks)

    @property
    def job(self) -> Job:
        """The job alone."""
        return Job(**_row(self))


def _row(job: Job) -> dict[str, Any]:
    return {field.name: getattr(job, field.name) for field in fields(Job)}


class Rate:
    """Tokens per second and time left, since the first look."""

    def __init__(self) -> None:
        self._first: tuple[float, int, int] | None = None

    def look(self, job: Job, running: Running) -> Progress:
        """The job's progress now, and its rates since the first look."""
        now, seen = time.monotonic(), Progress.of(job, running)
        if self._first is None or seen.tokens < self._first[2]:
            self._first = (now, seen.sequences, seen.tokens)
        since, first_sequences, first_tokens = self._first
        if seen.tokens == first_tokens:
            self._first = (now, seen.sequences, seen.tokens)  # loading the model is not slow generating
            return seen
        seconds, made = max(now - since, 1e-9), seen.sequences - first_sequences
        eta = (seen.num_sequences - seen.sequences) * seconds / made if made > 0 and job.sealed else None
        return Progress.of(job, running, (seen.tokens - first_tokens) / seconds, eta)
