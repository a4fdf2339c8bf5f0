"""Submitting: a spec as JSON with its prompts in it, or a spec and then a prompt a line, streamed.

A body is written to a temporary file as it comes, whatever its length, and looked at when it is whole.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import IO, Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

import jobs.submit
from jobs.errors import SpecError
from jobs.files import writing
from jobs.spec import JobSpec
from jobs.submit import Planned, Submitted
from webui.admission import admit
from webui.api.shapes import NOT_NOW, TOO_MUCH, refusals
from webui.caller import Caller, TheCaller
from webui.site import Site, TheSite

router = APIRouter(tags=["submit"])

_IN_MEMORY = 2**20  # bytes of a body, more of it lie on the disk
_LONGEST_SPEC = 2**20  # bytes
_OLDER = {200: {"model": Submitted, "description": "It was submitted before under this idempotency key."}}
_SUBMIT = _OLDER | NOT_NOW | TOO_MUCH
_PLAN = TOO_MUCH | refusals(s409="The idempotency key stands for another job.")


def spec_schema() -> dict[str, Any]:
    """The spec's schema without what HTTP does not take, and without references."""
    schema = JobSpec.model_json_schema()
    row = schema.pop("$defs")["PromptRow"]
    prompts = schema["properties"]["prompts"]
    prompts["anyOf"][0]["items"] = {"anyOf": [{"type": "string", "description": "The text of a prompt."}, row]}
    del schema["properties"]["file"]
    return schema


_JSON = {"requestBody": {"required": True, "content": {"application/json": {"schema": spec_schema()}}}}
_LINES = {
    "requestBody": {
        "required": True,
        "description": "The spec as a JSON object in the first line, then a prompt a line: an object with `prompt`, "
        "`messages` or `prompt_token_ids`, and optionally `custom_id` and `answer`.",
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string"},
                "example": '{"model": "tiny-arithmetic", "G": 4}\n{"prompt": "What is 2 + 3?"}\n',
            }
        },
    }
}


@router.post("/jobs", status_code=201, responses=_SUBMIT, openapi_extra=_JSON, summary="Submit a job")
def submit(
    site: TheSite, caller: TheCaller, fields: Annotated[dict[str, Any], Body()], response: Response
) -> Submitted:
    """Up to 10,000 prompts stand in the spec; more are sent as lines, to `/api/v1/jobs/stream`."""
    return _answer(_submit(site, caller, fields, None), response)


@router.post("/jobs/stream", status_code=201, responses=_SUBMIT, openapi_extra=_LINES, summary="Submit any number")
async def submit_lines(site: TheSite, caller: TheCaller, request: Request, response: Response) -> Submitted:
    """A spec, then its prompts as lines of JSON. In a problem, lines are counted from the first prompt."""
    with await _spooled(request) as body:
        return _answer(await run_in_threadpool(_submit, site, caller, None, body), response)


@router.post("/jobs/plan", responses=_PLAN, openapi_extra=_JSON, summary="Check a job, and store nothing")
def plan(site: TheSite, fields: Annotated[dict[str, Any], Body()]) -> Planned:
    return _plan(site, fields, None)


@router.post("/jobs/plan/stream", responses=_PLAN, openapi_extra=_LINES, summary="Check any number of prompts")
async def plan_lines(site: TheSite, request: Request) -> Planned:
    with await _spooled(request) as body:
        return await run_in_threadpool(_plan, site, None, body)


def _submit(site: Site, caller: Caller, fields: dict[str, Any] | None, body: IO[bytes] | None) -> Submitted:
    spec = _admitted(site, fields, body)
    return jobs.submit.submit(site.store, site.settings, spec, owner=caller.name, stdin=body)  # type: ignore[arg-type]


def _plan(site: Site, fields: dict[str, Any] | None, body: IO[bytes] | None) -> Planned:
    spec = _admitted(site, fields, body)
    return Planned.of(jobs.submit.plan(site.store, site.settings, spec, stdin=body))  # type: ignore[arg-type]


def _answer(done: Submitted, response: Response) -> Submitted:
    response.status_code = 201 if done.created else 200
    return done


def _admitted(site: Site, fields: dict[str, Any] | None, body: IO[bytes] | None) -> JobSpec:
    """The spec, which reads the rest of `body`, if there is one, as its standard input. Raises SpecError."""
    fields = _first_line(body) if body is not None else fields
    assert fields is not None
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise SpecError(["the spec holds NaN, an infinity or half a character, which JSON and UTF-8 do not"]) from None
    spec = admit(fields, site.settings)
    if body is None:
        return spec
    if spec.prompts is None and spec.dataset is None and spec.source is None:
        return spec.model_copy(update={"file": "-"})
    if body.readline(_LONGEST_SPEC).strip():
        raise SpecError(
            ["prompts come from one place, but lines follow a spec that names a dataset or a job or holds prompts"]
        )
    return spec


def _first_line(body: IO[bytes]) -> dict[str, Any]:
    line = body.readline(_LONGEST_SPEC + 1)
    try:
        fields = json.loads(line) if len(line) <= _LONGEST_SPEC else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise SpecError(["line 1: must be the spec, one JSON object in one line of at most a megabyte"])
    return fields


async def _spooled(request: Request) -> IO[bytes]:
    """The body, whole, and read from its beginning."""
    body: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
    try:
        with writing(Path(tempfile.gettempdir()) / "upload"):
            async for chunk in request.stream():
                await run_in_threadpool(body.write, chunk)
    except ClientDisconnect:
        body.close()
        raise HTTPException(400, "The request broke off; nothing was stored.") from None
    except BaseException:
        body.close()
        raise
    body.seek(0)
    return body
