"""From a spec and its prompts to a job: check everything, write the snapshot, then commit one transaction.

The folder comes first and the row last. Until the row is committed nobody knows of the folder; whatever goes wrong
removes it, and of a submit that was killed an orphan stays that `gc` removes. There is never a row without its folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jobs.doorbell import Doorbell
from jobs.errors import JobNotFound, StoreError
from jobs.files import flush, make_folder, write_json, writing
from jobs.model_roots import check_roots
from jobs.paths import JobPaths, new_job_id
from jobs.prompts import PromptSource
from jobs.records import Job, NewJob
from jobs.settings import Settings
from jobs.snapshot import Snapshot, read_all, write_snapshot
from jobs.source import with_source
from jobs.spec import JobSpec, PromptRow
from jobs.store import Store
from jobs.store_id import check_root
from jobs.webhook_target import check_webhook

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a submit would make: the resolved spec, and counts."""

    spec: JobSpec
    num_prompts: int
    num_sequences: int
    num_shards: int
    snapshot_digest: str
    ignored_columns: list[str]


@dataclass(frozen=True, slots=True)
class Planned:
    """What a submit would make: the resolved spec without its prompts, and counts."""

    spec: dict[str, Any]
    num_prompts: int
    num_sequences: int
    num_shards: int
    snapshot_digest: str
    ignored_columns: list[str]

    @classmethod
    def of(cls, plan: Plan) -> Planned:
        """The plan as plain data."""
        counts = {name: getattr(plan, name) for name in cls.__dataclass_fields__ if name != "spec"}
        return cls(spec=plan.spec.stored(), **counts)


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job, and whether it is new or an older one under the same idempotency key."""

    job: Job
    created: bool
    ignored_columns: list[str]  # of the file, that say nothing to a job
    unrung: str | None = None  # why idle workers could not be rung; they find the job at their next look


def plan(
    store: Store,
    settings: Settings,
    spec: JobSpec,
    *,
    prompts: Iterable[Any] | None = None,
    stdin: BinaryIO | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Checks all of a job that submit checks, and counts; leaves nothing behind.

    Arguments and exceptions as of `submit`.
    """
    spec, prompts = with_source(store, settings, spec, prompts)
    spec = spec.resolve()
    check_roots(spec, settings.model_roots)
    check_webhook(spec.webhook, settings.webhook_hosts)
    source = PromptSource(spec, prompts=prompts, stdin=stdin)
    with tempfile.TemporaryDirectory(prefix="seqproc-") as folder:
        snapshot = _take_snapshot(JobPaths(Path(folder), "plan"), spec, source, progress)
    return Plan(
        spec=spec,
        num_prompts=snapshot.num_prompts,
        num_sequences=snapshot.num_prompts * spec.G,
        num_shards=sum(1 for _ in snapshot.shards(spec.shard_size)),
        snapshot_digest=snapshot.digest,
        ignored_columns=source.ignored_columns,
    )


def submit(
    store: Store,
    settings: Settings,
    spec: JobSpec,
    *,
    owner: str,
    prompts: Iterable[Any] | None = None,
    stdin: BinaryIO | None = None,
    progress: Progress | None = None,
) -> Submitted:
    """Makes a job of the spec, durably, and returns it.

    Args:
        store: the database.
        settings: where the results root is.
        spec: says where the prompts come from, unless `prompts` is given.
        owner: who submits.
        prompts: texts, chats (lists of messages), lists of token ids, or dicts with the fields of PromptRow; any
            iterable, streamed.
        stdin: what a spec with file `-` reads.
        progress: called with the number of prompts after each one.

    Raises:
        SpecError: a line for each thing wrong; no row exists, and no file.
        IdempotencyConflict: the key belongs to a different job.
        ResultsError: the results folder cannot be written or belongs to another database.
        StoreError: the database cannot be reached.
    """
    spec, prompts = with_source(store, settings, spec, prompts)
    spec = spec.resolve()
    check_roots(spec, settings.model_roots)
    check_webhook(spec.webhook, settings.webhook_hosts)
    source = PromptSource(spec, prompts=prompts, stdin=stdin)
    check_root(store, settings.results)
    paths = JobPaths(settings.results, new_job_id())
    try:
        snapshot = _take_snapshot(paths, spec, source, progress)
        _make_ready(paths, spec)
    except BaseException:
        _remove(paths)
        raise
    doorbell = Doorbell(store, settings)
    doorbell.make_ready(spec.queue)
    job, created = _commit(store, paths, spec, snapshot, owner)
    if not created:
        _remove(paths)
        return Submitted(job, created, source.ignored_columns)
    unrung = doorbell.ring(job.queue, job.pending_shards)
    return Submitted(job, created, source.ignored_columns, unrung)


def _take_snapshot(paths: JobPaths, spec: JobSpec, source: PromptSource, progress: Progress | None) -> Snapshot:
    rows = _counted(source, progress) if progress else source
    snapshot = write_snapshot(paths, rows, shard_size=spec.shard_size)
    source.check(lambda: read_all(paths, len(snapshot.segments)))
    return snapshot


def _counted(rows: Iterable[PromptRow], progress: Progress) -> Iterator[PromptRow]:
    for number, row in enumerate(rows, start=1):
        yield row
        progress(number)


def _make_ready(paths: JobPaths, spec: JobSpec) -> None:
    """The rest of the folder, and its name durable: workers create no folders, so that none comes back after gc."""
    make_folder(paths.shards)
    make_folder(paths.errors)
    write_json(paths.spec, spec.stored())
    with writing(paths.folder):
        flush(paths.folder.parent)


def _commit(store: Store, paths: JobPaths, spec: JobSpec, snapshot: Snapshot, owner: str) -> tuple[Job, bool]:
    new = NewJob(
        id=paths.job_id,
        owner=owner,
        spec=spec.stored(),
        spec_digest=spec.digest(),
        snapshot_digest=snapshot.digest,
        num_prompts=snapshot.num_prompts,
        samples=spec.G,
        idempotency_key=spec.idempotency_key,
    )
    try:
        return store.create_job(new, snapshot.shards(spec.shard_size))
    except StoreError:  # the transaction may have gone through and only the reply be lost
        if (job := _found(store, paths)) is None:
            raise
        return job, True
    except BaseException:
        _found(store, paths)
        raise


def _found(store: Store, paths: JobPaths) -> Job | None:
    """The row, if it is there after all; the folder goes only when the database says that there is none."""
    try:
        return store.job(paths.job_id)
    except JobNotFound:
        _remove(paths)
    except StoreError:
        pass
    return None


def _remove(paths: JobPaths) -> None:
    shutil.rmtree(paths.folder, ignore_errors=True)
