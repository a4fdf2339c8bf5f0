"""Taking in the prompts of a job that is fed: it is opened without any, gets them piece by piece, and is sealed.

A piece is a segment of the snapshot and its shards. The segment's file comes first, under a temporary name; it gets its
own in the transaction that adds the shards, while the job's row is locked, so that of two pieces for one place only one
is ever there. A piece names the prompt it begins with: sent twice, after a reply was lost, it is there once.
What is no prompt is kept in its place, and becomes a prompt error when its shard is run.
"""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from jobs.doorbell import Doorbell
from jobs.errors import ResultsError, SpecError, StoreError
from jobs.files import flush, make_folder, reserved, write_json, writing
from jobs.manifest import ensure_manifest, fix_digest
from jobs.model_roots import check_roots
from jobs.names import Names
from jobs.paths import JobPaths, new_job_id
from jobs.processes import ProcessName
from jobs.records import Job, NewJob
from jobs.settings import Settings
from jobs.snapshot import BadPrompt, Item, read_all, shard_ranges, write_segment
from jobs.spec import JobSpec, PromptRow
from jobs.store import Store
from jobs.store_id import check_root
from jobs.submit import Submitted
from jobs.webhook_target import check_webhook

_OPEN = 64  # jobs whose names are kept in memory; those of another are read again


@dataclass(slots=True)
class _Fed:
    """What is known of one job that is fed here."""

    lock: threading.Lock = field(default_factory=threading.Lock)  # one piece at a time
    names: Names = field(default_factory=Names)
    prompts: int = 0  # whose names these are


class Intake:
    """Opens, feeds and seals the jobs of one database. Safe to use from any thread, and beside other processes."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._doorbell = Doorbell(store, settings)
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, _Fed] = OrderedDict()

    def open(self, spec: JobSpec, *, owner: str, feeder: ProcessName | None) -> Submitted:
        """A job without prompts, which waits for some. `feeder`: the process that feeds it, if that is known.

        Raises SpecError, ResultsError or StoreError as `jobs.submit.submit` does.
        """
        check_may_be_fed(spec)
        spec = spec.resolve()
        check_roots(spec, self._settings.model_roots)
        check_webhook(spec.webhook, self._settings.webhook_hosts)
        check_root(self._store, self._settings.results)
        paths = JobPaths(self._settings.results, new_job_id())
        new = NewJob(
            id=paths.job_id,
            owner=owner,
            spec=spec.stored(),
            spec_digest=spec.digest(),
            snapshot_digest="",
            num_prompts=0,
            samples=spec.G,
            sealed=False,
            feeder=asdict(feeder) if feeder else None,
        )
        try:
            for folder in (paths.prompts, paths.shards, paths.errors):
                make_folder(folder)
            write_json(paths.spec, spec.stored())
            job, _ = self._store.create_job(new, ())
        except BaseException:  # after a lost reply a row may be there: without a feeder it is soon sealed, and empty
            shutil.rmtree(paths.folder, ignore_errors=True)
            raise
        return Submitted(job, True, [])

    def append(self, job_id: str, first: int, items: Sequence[Item]) -> Job:
        """Add a piece whose first prompt is the job's `first`-th, counted from 0; none only says that more will come.

        Raises WrongState if the job takes no more prompts, or others than these come next; JobNotFound; ResultsError.
        """
        if not items:
            return self._store.beat_feed(job_id)
        fed = self._fed(job_id)
        with fed.lock:
            job = self._store.job(job_id)
            if job.sealed or job.num_prompts != first:
                return self._store.append_prompts(job_id, first, len(items), (), _too_late)
            self._learn_names(job, fed)
            rows, names = _without_twins(items, first, fed.names)
            job = self._add(job, rows)
            fed.names.update(names)
            fed.prompts = job.num_prompts
        self._doorbell.ring(job.queue, job.pending_shards)
        return job

    def seal(self, job_id: str, truncated: str | None) -> Job:
        """No more prompts will come. `truncated`: why, if there would have been more. Sealing again changes nothing."""
        self._store.seal(job_id, truncated=truncated)
        with self._lock:
            self._jobs.pop(job_id, None)
        with suppress(ResultsError):  # of a folder that cannot be written now; a worker or gc will
            fix_digest(self._store, self._settings, job_id)
            ensure_manifest(self._store, self._settings, job_id)
        return self._store.job(job_id)

    def _fed(self, job_id: str) -> _Fed:
        with self._lock:
            fed = self._jobs.setdefault(job_id, _Fed())
            self._jobs.move_to_end(job_id)
            if len(self._jobs) > _OPEN:
                self._jobs.popitem(last=False)
            return fed

    def _learn_names(self, job: Job, fed: _Fed) -> None:
        """Read the names of the prompts that are there, unless they are known: another process may have taken some."""
        if fed.prompts == job.num_prompts:
            return
        fed.names, fed.prompts = Names(), job.num_prompts
        paths = JobPaths(self._settings.results, job.id)
        good = (row.custom_id for row in read_all(paths, self._store.segments(job.id)) if row.error is None)
        fed.names.update(good)

    def _add(self, job: Job, rows: Sequence[Item]) -> Job:
        paths = JobPaths(self._settings.results, job.id)
        size, first = job.spec["shard_size"], job.num_prompts

        def place(segment: int) -> None:
            with writing(paths.prompts):
                temporary.replace(paths.segment(segment))
                flush(paths.prompts)

        with reserved(paths.segment(self._store.segments(job.id))) as temporary:
            write_segment(temporary, rows, first)
            ranges = shard_ranges(0, len(rows), first, size)
            return self._store.append_prompts(job.id, first, len(rows), ranges, place)


def check_may_be_fed(spec: JobSpec) -> None:
    """Raises SpecError for what a job that is fed cannot have."""
    problems = []
    if spec.prompts is not None or spec.dataset is not None or spec.file not in (None, "-") or spec.source:
        problems.append(
            "prompts come from one place: a job that is fed names no file, dataset, source or prompts of its own"
        )
    if spec.replacement:
        problems.append(
            "replacement: draws from a whole set of prompts, which of a stream is known at its end; leave it out"
        )
    if spec.idempotency_key is not None:
        problems.append(
            "idempotency_key: stands for a whole set of prompts, which of a stream is known at its end; leave it out"
        )
    if problems:
        raise SpecError(problems)


def _too_late(_segment: int) -> None:
    """Undoes the adding of a piece that did not come next when it was looked at, and does now: it has no shards."""
    raise StoreError("the prompts before these were added by another server in this moment; send them again")


def _without_twins(items: Sequence[Item], first: int, known: Names) -> tuple[list[Item], set[str]]:
    """The items, each whose name stands already as a bad one; and the new names."""
    rows: list[Item] = []
    new: set[str] = set()
    for index, item in enumerate(items, start=first):
        if isinstance(item, PromptRow):
            name = str(index) if item.custom_id is None else item.custom_id
            if name in new or name in known:
                default = " (a row without a custom_id gets its index)" if item.custom_id is None else ""
                item = BadPrompt(f"custom_id: {name!r}{default} stands already before it; give each its own")
            else:
                new.add(name)
        rows.append(item)
    return rows, new
