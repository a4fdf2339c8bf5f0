"""Jobs: find, look at, steer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs import paging
from jobs.access import Retried
from jobs.labels import label_of
from jobs.logs import read_part
from jobs.paging import JOB_PLACE, Number, Offset, Page, page_of, place_of
from jobs.presence import WorkerStatus
from jobs.progress import JobStatus, Progress, Running
from jobs.records import Attempt, Job, Shard, Webhook
from jobs.spec import QUEUE
from jobs.states import JobState, ShardState
from webui.api.shapes import NO_JOB, NOT_NOW, NOT_YOURS, Cursor, Limit, TheJob
from webui.caller import TheCaller
from webui.site import Site, TheSite

router = APIRouter(tags=["jobs"])


class Filters(BaseModel):
    """Which jobs: those that satisfy every filter given."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Of this model.")
    label: str | None = Field(None, description="With this label: KEY, or KEY=VALUE.")
    owner: str | None = Field(None, description="Of this owner.")
    queue: str | None = Field(None, pattern=QUEUE, description="Of this queue.")
    q: str | None = Field(None, description="With this text in id, name, model or adapter.")

    def of_store(self) -> dict[str, Any]:
        """As the store takes them."""
        return {
            "model": self.model,
            "label": label_of(self.label),
            "owner": self.owner,
            "queue": self.queue,
            "text": self.q,
        }


class Asked(Filters):
    """Which jobs, and which page of them."""

    state: list[JobState] = Field([], description="In one of these states; repeatable.")
    cursor: str | None = Field(None, description="`next` of the page before, as it stands.")
    limit: int = Field(50, ge=1, le=200, description="At most so many.")


@router.get("/jobs", summary="List jobs, newest first")
def list_jobs(site: TheSite, asked: Annotated[Asked, Query()]) -> Page[Job]:
    """A page may be short, or empty, where the filters are met by few jobs: `next` says whether to go on."""
    before = place_of(asked.cursor, JOB_PLACE)
    states = asked.state or None
    found = site.store.jobs_page(states=states, limit=asked.limit, before=before, **asked.of_store())
    return Page(items=found.jobs, next=None if found.next is None else paging.cursor(found.next))


@dataclass(frozen=True)
class Counts:
    """How many jobs there are in each state; of those in `at_least` there may be more."""

    counts: dict[JobState, int]
    at_least: list[JobState]


@router.get("/counts", summary="Count jobs by state")
def counts(site: TheSite, filters: Annotated[Filters, Query()]) -> Counts:
    """Up to 10,001 of each state, and as far as a bounded look finds them."""
    found = site.store.job_counts(**filters.of_store())
    return Counts(dict(found), sorted(found.at_least))


@router.get("/find", responses=NO_JOB, summary="Find a job by its id, a prefix that only it has, or its name")
def find(site: TheSite, job: Annotated[str, Query(min_length=1, max_length=256, pattern=r"^[^\x00]+$")]) -> Job:
    return site.store.job(job)


@router.get("/workers", tags=["workers"], summary="List the workers that have not left")
def workers(site: TheSite) -> list[WorkerStatus]:
    return site.client.workers()


@router.get("/jobs/{job}", responses=NO_JOB, summary="A job: its record, progress, and what was told of its ends")
def status(site: TheSite, job: TheJob) -> JobStatus:
    return JobStatus.of(job, _progress(site, job), site.store.webhooks_of(job.id))


@router.get("/jobs/{job}/progress", responses=NO_JOB, summary="How far a job is")
def progress(site: TheSite, job: TheJob) -> Progress:
    """Running shards included; the rates are those that its workers report."""
    return _progress(site, job)


@router.get("/jobs/{job}/shards", responses=NO_JOB, summary="List a job's shards")
def shards(
    site: TheSite,
    job: TheJob,
    state: Annotated[list[ShardState] | None, Query(description="In one of these states; repeatable.")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[Shard]:
    after = place_of(cursor, Number)
    found = site.store.shards(job.id, states=state or None, after=-1 if after is None else after, limit=limit)
    return page_of(found, limit, lambda shard: shard.index)


@router.get("/jobs/{job}/done", responses=NO_JOB, summary="List a job's done shards in the order in which they were")
def done(
    site: TheSite,
    job: TheJob,
    after: Annotated[int, Query(ge=0, lt=2**31, description="Only those behind this `done_order`.")] = 0,
    limit: Limit = 100,
) -> list[Shard]:
    """That order grows at its end alone: to follow a job, ask again behind the last one."""
    return site.store.done_after(job.id, after, limit=limit)


@router.get("/jobs/{job}/attempts", responses=NO_JOB, summary="List every execution of every shard")
def attempts(site: TheSite, job: TheJob, cursor: Cursor = None, limit: Limit = 100) -> Page[Attempt]:
    found = site.store.attempts(job.id, after=place_of(cursor, tuple[Number, Number]), limit=limit)
    return page_of(found, limit, lambda attempt: (attempt.shard, attempt.attempt))


@router.get("/jobs/{job}/webhooks", responses=NO_JOB, summary="How telling of a job's ends went")
def webhooks(site: TheSite, job: TheJob) -> list[Webhook]:
    return site.store.webhooks_of(job.id)


@router.get("/jobs/{job}/logs", responses=NO_JOB, summary="What the workers logged about a job")
def logs(site: TheSite, job: TheJob, cursor: Cursor = None, limit: Limit = 1_000) -> Page[dict[str, Any]]:
    """Oldest first, up to `limit` lines of each worker. `next` is null only when the job has ended and all was read:
    to follow a job, ask again with it after a while."""
    part = read_part(site.store, site.settings.results, job.id, place_of(cursor, dict[str, Offset]) or {}, limit)
    return Page(items=part.lines, next=None if part.last else paging.cursor(part.read))


@router.post("/jobs/{job}/cancel", responses=NO_JOB | NOT_NOW | NOT_YOURS, summary="Stop a job")
def cancel(site: TheSite, caller: TheCaller, job: TheJob) -> Job:
    """Pending shards at once, running ones within a heartbeat. What is done stays readable."""
    return site.steered(job.id, caller).cancel()


@router.post("/jobs/{job}/retry", responses=NO_JOB | NOT_NOW | NOT_YOURS, summary="Queue what failed again")
def retry(
    site: TheSite,
    caller: TheCaller,
    job: TheJob,
    failed_only: Annotated[bool, Query(description="Leave cancelled shards as they are.")] = False,
) -> Retried:
    """And what was cancelled. What is done is not made twice."""
    handle = site.steered(job.id, caller)
    return Retried(handle.retry(failed_only=failed_only), handle.unrung)


@router.delete(
    "/jobs/{job}", status_code=204, responses=NO_JOB | NOT_NOW | NOT_YOURS, summary="Delete a job that has ended"
)
def delete(site: TheSite, caller: TheCaller, job: TheJob) -> Response:
    """With its results. There is no way back."""
    site.steered(job.id, caller).delete()
    return Response(status_code=204)


def _progress(site: Site, job: Job) -> Progress:
    if job.state.ended:
        return Progress.of(job, Running(0, 0))
    return Progress.reported(job, Running(*site.store.running_progress(job.id)), site.store.workers())
