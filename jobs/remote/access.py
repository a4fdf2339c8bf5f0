"""`Access` to a server's jobs: each operation is a request; result files are fetched by number when they are read."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, BinaryIO
from uuid import uuid4

from pydantic import ValidationError

from jobs.access import OnPrompt, Retried
from jobs.errors import SpecError
from jobs.labels import Label, written
from jobs.paging import Page, cursor
from jobs.presence import WorkerStatus
from jobs.progress import JobStatus, Running
from jobs.records import Attempt, Job, LostSpec, Moment, Shard, Sidecar, Webhook
from jobs.remote.cache import Cache
from jobs.remote.server import Server
from jobs.remote.upload import body_of, upload
from jobs.results import Contents, JobResults, ResultFile, added_columns, by_shard
from jobs.snapshot import Item
from jobs.spec import JobSpec, problems
from jobs.states import JobState, ShardState
from jobs.submit import Plan, Planned, Submitted

_PAGE = 1_000  # shards, attempts
_JOBS_PAGE = 200
_LOOK_EVERY = 0.5  # seconds between looks at a log that grows


class Remote:
    """`Access` over HTTP. Jobs belong to whom the token names; work is done on the server's side, never here."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._server = Server(url, token)
        self._cache = Cache(self._server)

    def close(self) -> None:
        self._server.close()

    def parse(self, fields: dict[str, Any]) -> JobSpec:
        try:
            return JobSpec.of_stored(fields)  # whether its folders exist is for the server to say
        except ValidationError as error:
            raise SpecError(problems(error)) from None

    def submit(
        self, spec: JobSpec, *, prompts: Iterable[Any] | None, stdin: BinaryIO | None, on_prompt: OnPrompt | None
    ) -> Submitted:
        ours = spec.idempotency_key is None  # so that sending it again after a lost answer makes no second job
        if ours:
            spec = spec.model_copy(update={"idempotency_key": uuid4().hex})
        with upload(spec, prompts=prompts, stdin=stdin, on_prompt=on_prompt) as sent:
            done = self._server.upload(Submitted, "/jobs/stream", sent.body)
        return replace(done, job=_job(done.job), created=done.created or ours, ignored_columns=sent.ignored_columns)

    def plan(self, spec: JobSpec, *, prompts: Iterable[Any] | None, stdin: BinaryIO | None) -> Plan:
        with upload(spec, prompts=prompts, stdin=stdin) as sent:
            found = self._server.upload(Planned, "/jobs/plan/stream", sent.body)
        resolved = JobSpec.of_stored(found.spec).model_copy(update={"prompts": spec.prompts, "file": spec.file})
        return Plan(**asdict(found) | {"spec": resolved, "ignored_columns": sent.ignored_columns})

    def open(self, spec: JobSpec) -> Submitted:
        said = spec.model_dump(mode="json", exclude_unset=True, exclude={"file"})
        done = self._server.send(Submitted, "/jobs/feed", said, again=False)
        return replace(done, job=_job(done.job))

    def append(self, job_id: str, first: int, items: Sequence[Item]) -> Job:
        return _job(self._server.upload(Job, f"/jobs/{job_id}/prompts?first={first}", body_of(items)))

    def seal(self, job_id: str, truncated: str | None) -> Job:
        return _job(self._server.post(Job, f"/jobs/{job_id}/seal", again=True, truncated=truncated))

    def job(self, id_or_prefix: str) -> Job:
        return _job(self._server.read(Job, "/find", job=id_or_prefix))

    def look(self, job_id: str) -> tuple[Job, Running]:
        status = self._server.read(JobStatus, f"/jobs/{job_id}")
        made = status.progress
        return _job(status.job), Running(made.sequences - status.done_sequences, made.tokens - status.done_tokens)

    def jobs(
        self,
        *,
        states: Collection[JobState] | None = None,
        label: Label | None = None,
        text: str | None = None,
        limit: int = 50,
        before: Moment | None = None,
        **same: Any,
    ) -> list[Job]:
        if limit < 1 or (states is not None and not states):
            return []
        query = {
            "state": states and list(states),
            "label": label and written(label),
            "q": text,
            "cursor": before and cursor(before),
            **same,
        }
        found: list[Job] = []
        for page in self._server.pages(Job, "/jobs", limit=min(limit, _JOBS_PAGE), **query):
            found += map(_job, page.items)
            if len(found) >= limit:
                break
        return found[:limit]

    def workers(self) -> list[WorkerStatus]:
        return self._server.read(list[WorkerStatus], "/workers")

    def helper(self, job: Job, *, start_worker: bool, local: bool) -> Onlooker:
        return Onlooker()

    def cancel(self, job_id: str) -> Job:
        return _job(self._server.post(Job, f"/jobs/{job_id}/cancel", again=True))

    def retry(self, job_id: str, *, failed_only: bool) -> Retried:
        done = self._server.post(Retried, f"/jobs/{job_id}/retry", again=False, failed_only=failed_only)
        return replace(done, job=_job(done.job))

    def delete(self, job_id: str) -> None:
        self._server.delete(f"/jobs/{job_id}")

    def shards(
        self, job_id: str, *, states: Collection[ShardState] | None = None, limit: int | None = None
    ) -> list[Shard]:
        return list(islice(self._shards(job_id, state=states and list(states)), limit))

    def done_files(self, job_id: str, *, after: int, limit: int) -> list[ResultFile]:
        found = self._server.read(list[Shard], f"/jobs/{job_id}/done", after=after, limit=limit)
        if not found:
            return []
        numbers = [shard.index for shard in found]
        sidecars = list(self._sidecars(job_id, min(numbers), max(numbers)))
        columns, beside = added_columns(self.job(job_id).spec, (s.column for s in sidecars)), by_shard(sidecars)
        return [self._cache.place(shard, columns, beside.get(shard.index, ())) for shard in found]

    def _sidecars(self, job_id: str, first: int, last: int) -> Iterator[Sidecar]:
        """Those of the shards from `first` to `last`."""
        for start in range(first, last + 1, _PAGE):
            query = {"cursor": cursor(start), "limit": min(_PAGE, last + 1 - start)}
            yield from self._server.read(Page[Sidecar], f"/jobs/{job_id}/sidecars", **query).items

    def _shards(self, job_id: str, **query: Any) -> Iterator[Shard]:
        for page in self._server.pages(Shard, f"/jobs/{job_id}/shards", limit=_PAGE, **query):
            yield from page.items

    def attempts(self, job_id: str) -> list[Attempt]:
        pages = self._server.pages(Attempt, f"/jobs/{job_id}/attempts", limit=_PAGE)
        return [attempt for page in pages for attempt in page.items]

    def webhooks(self, job_id: str) -> list[Webhook]:
        return self._server.read(list[Webhook], f"/jobs/{job_id}/webhooks")

    def put_reward(self, job_id: str, file: ResultFile, name: str, values: list[float | None]) -> None:
        given = {"of_sha256": file.sha256, "values": values}
        self._server.put(Sidecar, f"/jobs/{job_id}/rewards/{name}/{file.shard}", given)

    def results(self, job_id: str) -> JobResults:
        def contents() -> Contents:
            job = self.job(job_id)
            shards = list(self._shards(job_id, state="done"))
            pages = self._server.pages(Sidecar, f"/jobs/{job_id}/sidecars", limit=_PAGE)
            sidecars = [sidecar for page in pages for sidecar in page.items]
            columns, beside = added_columns(job.spec, (s.column for s in sidecars)), by_shard(sidecars)
            files = [self._cache.place(shard, columns, beside.get(shard.index, ())) for shard in shards]
            return Contents(job.id, job.state, job.spec, job.done_shards, job.num_shards, files, columns)

        return JobResults(
            self._cache.paths(job_id),
            contents,
            lambda: self._server.read(dict[str, Any], f"/jobs/{job_id}/manifest"),
            lambda file: self._cache.bring(job_id, file),
        )

    def logs(self, job_id: str, *, follow: bool) -> Iterator[dict[str, Any]]:
        for page in self._server.pages(dict[str, Any], f"/jobs/{job_id}/logs", limit=_PAGE):
            yield from page.items
            if not page.items and not follow:
                return
            if not page.items:
                time.sleep(_LOOK_EVERY)


class Onlooker:
    """Does nothing but watch: on the server's side workers come and go without us."""

    def look(self) -> None: ...

    def help(self, job: Job) -> None: ...

    def finish(self) -> None: ...


def _job(job: Job) -> Job:
    """A spec that was damaged comes as an empty one."""
    return job if job.spec else replace(job, spec=LostSpec(None))
