"""What the API's answers look like beyond the records of `jobs`, and which refusals every operation may give."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Query
from pydantic import BaseModel, Field

from jobs.errors import JobNotFound
from jobs.paging import JobId, Page
from jobs.records import Job
from webui.site import TheSite

Row = dict[str, Any]
Cursor = Annotated[str | None, Query(description="`next` of the page before, as it stands.")]
Limit = Annotated[int, Query(ge=1, le=1_000, description="At most so many.")]


class ErrorDetail(BaseModel):
    code: str = Field(description="A word for programs: the class that `jobs.errors` has for it, if it has one.")
    message: str = Field(description="What is wrong, where, and what to do.")
    problems: list[str] = Field([], description="A line for each thing to mend, the first 100.")
    total: int | None = Field(None, description="How many things there are to mend, if any are listed.")


class Refused(BaseModel):
    """The answer to what cannot be done as asked."""

    error: ErrorDetail


class PromptError(BaseModel):
    """A prompt that could not be done."""

    prompt_index: int
    sample_index: int | None = Field(description="Null: none of its samples.")
    custom_id: str
    error: str


class RowsPage(Page[Row]):
    """Sequences: one object each, with the columns of a shard's file. Infinities are null, as JSON has none."""

    scanned: int | None = Field(None, description="With `sort`: how many sequences were compared.")


def refusals(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """Documented statuses, as `s404="there is no such job"`."""
    return {int(name[1:]): {"model": Refused, "description": text} for name, text in descriptions.items()}


EVERYWHERE = refusals(
    s400="Asked in a way that cannot be understood: a host name, a cursor, an encoding.",
    s401="The token is missing or wrong.",
    s422="A parameter or field is wrong; `problems` has a line for each.",
    s429="Too many requests, or too many wrong tokens; `Retry-After` says when to come back.",
    s503="The database or the results folder does not answer.",
)
NO_JOB = refusals(s404="There is no such job, or nothing of it by this number.")
NOT_NOW = refusals(s409="The job's state, or what else is there, does not allow it.")
NOT_YOURS = refusals(s403="The job is another's.")
TOO_MUCH = refusals(s408="The body did not arrive in time.", s413="The body is too large.", s403="From another site.")


def _job(site: TheSite, job: Annotated[JobId, Path(description="Its id.")]) -> Job:
    """Raises JobNotFound unless it is the whole id: what is asked of a job must not hit another that begins so."""
    found = site.store.job(job)
    if found.id != job:
        raise JobNotFound(f"no job {job}; give the whole id, which /api/v1/find?job={job} tells")
    return found


TheJob = Annotated[Job, Depends(_job)]
"""A route's parameter of this type is the job that the path names."""
