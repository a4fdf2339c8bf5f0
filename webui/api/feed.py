"""Prompts as a stream: a job is opened without any, gets them piece by piece, and is sealed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from starlette.concurrency import run_in_threadpool

from jobs.errors import SpecError
from jobs.prompts import checked
from jobs.records import Job
from jobs.snapshot import BadPrompt, Item
from jobs.submit import Submitted
from webui.admission import admit
from webui.api.shapes import NO_JOB, NOT_NOW, NOT_YOURS, TOO_MUCH, TheJob
from webui.api.submit import spec_schema
from webui.caller import TheCaller
from webui.site import Site, TheSite

router = APIRouter(tags=["submit"])

_SPEC = {"requestBody": {"required": True, "content": {"application/json": {"schema": spec_schema()}}}}
_LINES = {
    "requestBody": {
        "description": "A prompt a line: an object with `prompt`, `messages` or `prompt_token_ids`, and optionally "
        '`custom_id` and `answer`; or `{"error": "why there is none"}` in the place of one.',
        "content": {
            "application/x-ndjson": {"schema": {"type": "string"}, "example": '{"prompt": "What is 2 + 3?"}\n'}
        },
    }
}


@router.post(
    "/jobs/feed", status_code=201, responses=TOO_MUCH, openapi_extra=_SPEC, summary="Open a job that is fed prompts"
)
def open_job(site: TheSite, caller: TheCaller, fields: Annotated[dict[str, Any], Body()]) -> Submitted:
    """Without prompts: those come to `/api/v1/jobs/{job}/prompts`, and workers begin with the first of them."""
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise SpecError(["the spec holds NaN, an infinity or half a character, which JSON and UTF-8 do not"]) from None
    return site.intake.open(admit(fields, site.settings), owner=caller.name, feeder=None)


@router.post(
    "/jobs/{job}/prompts",
    responses=NO_JOB | NOT_NOW | NOT_YOURS | TOO_MUCH,
    openapi_extra=_LINES,
    summary="Add prompts to a job that is not sealed",
)
async def append(
    site: TheSite,
    caller: TheCaller,
    job: TheJob,
    request: Request,
    first: Annotated[int, Query(ge=0, lt=2**53, description="Number of the first one: how many the job has.")],
) -> Job:
    """Sent twice, after a lost answer, they are there once. A line that is no prompt keeps its place and becomes a
    prompt error. An empty body says that more will come; without a word for ten leases, the job is sealed as truncated.
    """
    caller.check_may_steer(job)
    return await run_in_threadpool(_append, site, job, first, await request.body())


@router.post("/jobs/{job}/seal", responses=NO_JOB | NOT_YOURS, summary="Say that no more prompts will come")
def seal(
    site: TheSite,
    caller: TheCaller,
    job: TheJob,
    truncated: Annotated[str | None, Query(max_length=2_000, description="Why, if more were to come.")] = None,
) -> Job:
    """The job ends with its last shard then. Sealing again changes nothing."""
    caller.check_may_steer(job)
    return site.intake.seal(job.id, truncated)


def _append(site: Site, job: Job, first: int, body: bytes) -> Job:
    return site.intake.append(job.id, first, list(_items(body, job.kind, first)))


def _items(body: bytes, kind: str, first: int) -> Iterator[Item]:
    lines = (text for text in body.split(b"\n") if text.strip())
    for index, text in enumerate(lines, start=first):
        found = _item(text, kind)
        yield BadPrompt(f"prompts[{index}] {found}") if isinstance(found, str) else found


def _item(text: bytes, kind: str) -> Item | str:
    """What a line holds, or what is wrong with it."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):  # of UTF-8 as well
        return "is no JSON"
    if isinstance(data, dict) and data.keys() == {"error"} and isinstance(data["error"], str):
        return BadPrompt(data["error"])
    row = checked(data, kind)
    return "; ".join(row) if isinstance(row, list) else row
