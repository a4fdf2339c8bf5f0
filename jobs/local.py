"""Access to the jobs of this machine: the database and the results folder that the settings name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from jobs.access import OnPrompt, Retried
from jobs.child import ChildWorker, environment
from jobs.doorbell import Doorbell
from jobs.errors import ResultsError
from jobs.gc import delete
from jobs.intake import Intake
from jobs.logs import job_log
from jobs.manifest import ensure_manifest
from jobs.paths import JobPaths
from jobs.presence import WorkerStatus
from jobs.processes import this_process
from jobs.progress import Running
from jobs.reaper import Reaper
from jobs.records import Attempt, Job, Shard, Webhook
from jobs.results import JobResults, ResultFile, files_of
from jobs.settings import Settings, current_owner
from jobs.sidecars import REWARD, Measured, keep_sidecar
from jobs.snapshot import Item
from jobs.spec import JobSpec
from jobs.states import ShardState
from jobs.store import Store
from jobs.submit import Plan, Submitted, plan, submit


class Local:
    """`Access` without a server between: a job's owner is the operating system's user."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store.open(settings)
        self._intake = Intake(self.store, settings)

    def close(self) -> None:
        self.store.close()

    def parse(self, fields: dict[str, Any]) -> JobSpec:
        return JobSpec.parse(fields)

    def submit(
        self, spec: JobSpec, *, prompts: Iterable[Any] | None, stdin: BinaryIO | None, on_prompt: OnPrompt | None
    ) -> Submitted:
        owner = current_owner()
        return submit(self.store, self.settings, spec, owner=owner, prompts=prompts, stdin=stdin, progress=on_prompt)

    def plan(self, spec: JobSpec, *, prompts: Iterable[Any] | None, stdin: BinaryIO | None) -> Plan:
        return plan(self.store, self.settings, spec, prompts=prompts, stdin=stdin)

    def open(self, spec: JobSpec) -> Submitted:
        return self._intake.open(spec, owner=current_owner(), feeder=this_process())

    def append(self, job_id: str, first: int, items: Sequence[Item]) -> Job:
        return self._intake.append(job_id, first, items)

    def seal(self, job_id: str, truncated: str | None) -> Job:
        return self._intake.seal(job_id, truncated)

    def job(self, id_or_prefix: str) -> Job:
        return self.store.job(id_or_prefix)

    def look(self, job_id: str) -> tuple[Job, Running]:
        job = self.store.job(job_id)
        return job, Running(0, 0) if job.state.ended else Running(*self.store.running_progress(job_id))

    def jobs(self, **filters: Any) -> list[Job]:
        return self.store.jobs(**filters)

    def workers(self) -> list[WorkerStatus]:
        workers = self.store.workers()
        now = self.store.clock()
        return [WorkerStatus.of(worker, now) for worker in workers]

    def reaper(self) -> Reaper:
        settings = self.settings
        return Reaper(self.store, settings.lease_seconds, settings.max_failures, root=settings.results)

    def helper(self, job: Job, *, start_worker: bool, local: bool) -> LocalHelper:
        return LocalHelper(self, job, start_worker=start_worker, local=local)

    def cancel(self, job_id: str) -> Job:
        self.store.cancel(job_id)
        self.reaper().look()  # what a dead worker held will not hear of it
        self.write_manifest(job_id)
        return self.store.job(job_id)

    def write_manifest(self, job_id: str) -> None:
        """If the job has ended: its last word may have been a cancel, or a reaper's."""
        with suppress(ResultsError):  # a reader without the right to write; a worker or gc will
            ensure_manifest(self.store, self.settings, job_id)

    def retry(self, job_id: str, *, failed_only: bool) -> Retried:
        job = self.store.retry(job_id, failed_only=failed_only)
        return Retried(job, Doorbell(self.store, self.settings).ring(job.queue, job.pending_shards))

    def delete(self, job_id: str) -> None:
        delete(self.store, self.settings, job_id)

    def shards(
        self, job_id: str, *, states: Collection[ShardState] | None = None, limit: int | None = None
    ) -> list[Shard]:
        return self.store.shards(job_id, states=states, limit=limit)

    def done_files(self, job_id: str, *, after: int, limit: int) -> list[ResultFile]:
        shards = self.store.done_after(job_id, after, limit=limit)
        if not shards:
            return []
        spec, paths = self.store.job(job_id).spec, JobPaths(self.settings.results, job_id)
        return files_of(self.store, paths, spec, shards)

    def attempts(self, job_id: str) -> list[Attempt]:
        return self.store.attempts(job_id)

    def webhooks(self, job_id: str) -> list[Webhook]:
        return self.store.webhooks_of(job_id)

    def put_reward(self, job_id: str, file: ResultFile, name: str, values: list[float | None]) -> None:
        measured = Measured(job_id, REWARD, name, file.shard or 0, file.sha256, values)
        keep_sidecar(self.store, self.settings, file.path, measured)

    def results(self, job_id: str) -> JobResults:
        return JobResults.of(self.store, self.settings, job_id)

    def logs(self, job_id: str, *, follow: bool) -> Iterator[dict[str, Any]]:
        return job_log(self.store, self.settings.results, job_id, follow=follow)


class LocalHelper:
    """Takes shards back from dead workers and, unless told not to, keeps a worker running here if no other is alive."""

    def __init__(self, access: Local, job: Job, *, start_worker: bool, local: bool) -> None:
        self._access, self._job_id = access, job.id
        self._reaper = access.reaper()
        self._child = (
            ChildWorker(access.store, job.queue, environment(access.settings), local) if start_worker else None
        )

    def look(self) -> None:
        self._reaper.look()

    def help(self, job: Job) -> None:
        if self._child is not None:
            self._child.keep_running(job)

    def finish(self) -> None:
        self._access.write_manifest(self._job_id)
