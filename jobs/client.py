"""Jobs from Python: submit, wait, and read what came out, in the vocabulary of the command line.

from jobs import Client
client = Client()
job = client.submit(model="tiny-arithmetic", prompts=["What is 2 + 3?"], G=8, seed=42)
job.wait()
sequences, logprobs = job.to_batched()
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from pydantic import SecretStr

from jobs.child import ChildWorker
from jobs.doorbell import Doorbell
from jobs.errors import ResultsError, SpecError, StoreError, UsageError
from jobs.gc import delete
from jobs.logs import job_log
from jobs.manifest import ensure_manifest
from jobs.reaper import Reaper
from jobs.records import Job, Webhook
from jobs.results import JobResults
from jobs.settings import Settings, current_owner
from jobs.spec import JobSpec
from jobs.states import JobState
from jobs.store import Store
from jobs.submit import Plan, plan, submit

if TYPE_CHECKING:
    import datasets
    import pandas

    from sequence_processing.containers import BatchedSequences, LogprobResults

_LOOK_EVERY = 0.25  # seconds between looks of a waiting client at the database
_DATABASE_PATIENCE = 300.0  # seconds that a waiting client bears with a database that is away


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is, the running shards included. Tokens are response tokens; rates are since the waiting began."""

    state: JobState
    sequences: int
    num_sequences: int
    tokens: int
    tokens_per_second: float | None
    eta_seconds: float | None
    done_shards: int
    num_shards: int
    prompt_errors: int


class JobHandle:
    """One job: what it is (`record`), how far it is (`progress`), and its results."""

    def __init__(
        self,
        client: Client,
        record: Job,
        *,
        created: bool = True,
        ignored_columns: list[str] | None = None,
        unrung: str | None = None,
    ):
        self._client = client
        self.record = record
        self.created = created
        self.ignored_columns = ignored_columns or []
        self.unrung = unrung  # why idle workers could not be rung; they find the job at their next look

    def __repr__(self) -> str:
        return f"JobHandle({self.id}, {self.record.state}, {self.record.done_shards}/{self.record.num_shards} shards)"

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def state(self) -> JobState:
        return self.refresh().state

    def refresh(self) -> Job:
        """Read the job's row again."""
        self.record = self._client.store.job(self.id)
        return self.record

    @property
    def progress(self) -> Progress:
        """How far the job is now, without rates."""
        return self._progress(None)

    def wait(
        self,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        start_worker: bool = True,
        local: bool = False,
    ) -> Progress:
        """Wait until the job has ended; with no worker alive, start one here as a child process.

        Args:
            timeout: seconds; TimeoutError when they have passed. The job goes on.
            on_progress: called a few times a second.
            start_worker: False only watches.
            local: start a worker here even if others are alive.

        Raises:
            SeqprocError: the child worker cannot go on; the message says why.
        """
        store, settings = self._client.store, self._client.settings
        child = ChildWorker(store, self.record.queue, _environment(settings), insist=local)
        deadline = None if timeout is None else time.monotonic() + timeout
        rate, away_since, reaper = _Rate(), None, self._client.reaper()
        while True:
            try:
                reaper.look()
                progress = self._progress(rate)
                if on_progress is not None:
                    on_progress(progress)
                if progress.state.ended:
                    self._write_manifest()
                    return progress
                if start_worker:
                    child.keep_running(self.record)
                away_since = None
            except StoreError:  # a restart of the server is no reason to give up a job of hours
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > _DATABASE_PATIENCE:
                    raise
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {self.id} is still {self.record.state} after {timeout:g} s; it goes on")
            time.sleep(_LOOK_EVERY)

    def _progress(self, rate: _Rate | None) -> Progress:
        record = self.refresh()
        running = (0, 0) if record.state.ended else self._client.store.running_progress(self.id)
        sequences, tokens = record.done_sequences + running[0], record.done_tokens + running[1]
        speed, eta = rate.look(sequences, record.num_sequences, tokens) if rate else (None, None)
        return Progress(
            state=record.state,
            sequences=sequences,
            num_sequences=record.num_sequences,
            tokens=tokens,
            tokens_per_second=speed,
            eta_seconds=eta,
            done_shards=record.done_shards,
            num_shards=record.num_shards,
            prompt_errors=record.prompt_errors,
        )

    def cancel(self) -> Job:
        """Ask the job to stop: pending shards at once, running ones within a heartbeat. What is done stays readable."""
        self.record = self._client.store.cancel(self.id)
        self._client.reaper().look()  # what a dead worker held will not hear of it
        self.refresh()
        self._write_manifest()
        return self.record

    def _write_manifest(self) -> None:
        """If the job has ended: its last word may have been this cancel, or a reaper's."""
        with suppress(ResultsError):  # a reader without the right to write; a worker or gc will
            ensure_manifest(self._client.store, self._client.settings, self.id)

    def retry(self, *, failed_only: bool = False) -> Job:
        """Queue what failed, and unless `failed_only` what was cancelled, again. What is done is not made twice."""
        self.record = self._client.store.retry(self.id, failed_only=failed_only)
        bell = Doorbell(self._client.store, self._client.settings)
        self.unrung = bell.ring(self.record.queue, self.record.pending_shards)
        return self.record

    def delete(self) -> None:
        """Delete the job, which must have ended, with its results. There is no way back."""
        delete(self._client.store, self._client.settings, self.id)

    @property
    def webhooks(self) -> list[Webhook]:
        """How telling of the job's ends went, oldest first; empty without a webhook."""
        return self._client.store.webhooks_of(self.id) if self.record.spec.get("webhook") else []

    @property
    def results(self) -> JobResults:
        """Readers of the job's files."""
        return JobResults.of(self._client.store, self._client.settings, self.id)

    def rows(self, *, partial: bool = False) -> Iterator[dict[str, Any]]:
        """One dict a sequence, in order of (prompt_index, sample_index). NotFinished unless ended or `partial`."""
        return self.results.rows(partial=partial)

    def to_batched(self, *, partial: bool = False) -> tuple[BatchedSequences, LogprobResults]:
        """The core's own containers; prompts that failed are left out, `prompt_indices` says which are there."""
        return self.results.to_batched(partial=partial)

    def to_pandas(self, *, partial: bool = False) -> pandas.DataFrame:
        """One row a sequence."""
        return self.results.to_pandas(partial=partial)

    def dataset(self, *, partial: bool = False) -> datasets.Dataset:
        """A `datasets.Dataset` over the job's Parquet files."""
        return self.results.dataset(partial=partial)

    def logs(self, *, follow: bool = False) -> Iterator[dict[str, Any]]:
        """The workers' log lines about this job, oldest first; with `follow`, until the job has ended."""
        return job_log(self._client.store, self._client.settings.results, self.id, follow=follow)


class Client:
    """The jobs of one database and results folder, as the settings name them (by default the embedded ones)."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.load()
        self.store = Store.open(self.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database's connections."""
        self.store.close()

    def submit(
        self,
        spec: JobSpec | None = None,
        *,
        prompts: Iterable[Any] | None = None,
        stdin: BinaryIO | None = None,
        on_prompt: Callable[[int], None] | None = None,
        **fields: Any,
    ) -> JobHandle:
        """Submit a job: a JobSpec, or its fields; `prompts` may be any iterable and is streamed.

        Raises SpecError with a line for each thing wrong, before anything is stored.
        """
        spec, prompts = _spec(spec, prompts, fields)
        done = submit(
            self.store,
            self.settings,
            spec,
            owner=current_owner(),
            prompts=prompts,
            stdin=stdin,
            progress=on_prompt,
        )
        return JobHandle(self, done.job, created=done.created, ignored_columns=done.ignored_columns, unrung=done.unrung)

    def plan(
        self,
        spec: JobSpec | None = None,
        *,
        prompts: Iterable[Any] | None = None,
        stdin: BinaryIO | None = None,
        **fields: Any,
    ) -> Plan:
        """Check all that submit checks and count; nothing is stored."""
        spec, prompts = _spec(spec, prompts, fields)
        return plan(self.settings, spec, prompts=prompts, stdin=stdin)

    def get(self, job: str) -> JobHandle:
        """The job with this id, or unique prefix of one. Raises JobNotFound."""
        return JobHandle(self, self.store.job(job))

    def reaper(self) -> Reaper:
        """Takes shards back from dead workers: anyone alive may look."""
        settings = self.settings
        return Reaper(self.store, settings.lease_seconds, settings.max_failures, root=settings.results)

    def jobs(self, **filters: Any) -> list[JobHandle]:
        """Jobs, newest first; filters as `Store.jobs` takes them."""
        return [JobHandle(self, record) for record in self.store.jobs(**filters)]


class _Rate:
    """Tokens per second and time left, since the first look."""

    def __init__(self) -> None:
        self._first: tuple[float, int, int] | None = None

    def look(self, sequences: int, total: int, tokens: int) -> tuple[float | None, float | None]:
        now = time.monotonic()
        if self._first is None or tokens < self._first[2]:
            self._first = (now, sequences, tokens)
        since, first_sequences, first_tokens = self._first
        if tokens == first_tokens:
            self._first = (now, sequences, tokens)  # nothing made yet: loading the model is not slow generating
            return None, None
        seconds, made = max(now - since, 1e-9), sequences - first_sequences
        eta = (total - sequences) * seconds / made if made > 0 else None
        return (tokens - first_tokens) / seconds, eta


def _spec(
    spec: JobSpec | None, prompts: Iterable[Any] | None, fields: dict[str, Any]
) -> tuple[JobSpec, Iterable[Any] | None]:
    if spec is not None:
        if fields:
            raise UsageError(f"give a JobSpec or its fields, not both: {', '.join(fields)}")
        return spec, prompts
    if isinstance(prompts, str | bytes | Mapping) or hasattr(prompts, "columns"):
        kind = type(prompts).__name__
        raise SpecError([f"prompts: is a {kind}; give a list of prompts, as to_dict('records') makes of a DataFrame"])
    return JobSpec.parse(fields), prompts


def _environment(settings: Settings) -> dict[str, str]:
    """The environment in which a child worker reads exactly these settings; what lets in to the web is not for it."""
    names = [name for name in type(settings).model_fields if name not in ("token", "tokens")]
    given = {f"SEQPROC_{name.upper()}": _text(getattr(settings, name)) for name in names}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEQPROC_")}
    return kept | {name: value for name, value in given.items() if value}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value.expanduser().resolve()) if hasattr(value, "expanduser") else str(value)
