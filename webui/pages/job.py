"""One job: how it is and when it ran, its shards, what went wrong, what its workers said, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import Response, StreamingResponse

from jobs.errors import ResultsError
from jobs.jsonl import line
from jobs.logs import tail
from jobs.presence import serving
from jobs.records import Job, Shard
from jobs.snapshot import SnapshotRow, read_all
from jobs.spec import JobSpec
from jobs.states import ShardState
from webui.pages import recipe
from webui.pages.pace import Pace, running
from webui.pages.prompt_errors import prompt_errors
from webui.pages.timeline import timeline
from webui.polled import polled
from webui.site import Site, TheSite
from webui.templates import page

_SPANS = 10_000  # attempts drawn
_SHARDS = 100  # a page
_LINES = 300  # of the log
_REASONS = 5
_NO_SETTINGS = ("prompts", "idempotency_key", "name", "labels")  # or shown above

router = APIRouter(prefix="/jobs/{job_id}")


def head(site: Site, job: Job, tab: str) -> dict[str, Any]:
    """What `job_head.html` shows on top of every page of a job."""
    at_work = running(site.store)[job.id]
    return {
        "job": job,
        "tab": tab,
        "pace": Pace.of(job, at_work),
        "at_work": at_work,
        "unserved": not job.state.ended and not at_work and not serving(site.store, job.queue),
    }


@router.get("")
def overview(request: Request, site: TheSite, job_id: str) -> Response:
    return polled(request, lambda: _overview(request, site, site.store.job(job_id)), by_caller=True)


def _overview(request: Request, site: Site, job: Job) -> Response:
    values = head(site, job, "overview")
    made = {(shard.index, shard.attempt): shard.running_tokens for shard, _ in values["at_work"]}
    spans = site.store.spans(job.id, limit=_SPANS)
    return page(
        request,
        "job.html",
        **values,
        timeline=timeline(spans, made, site.store.clock()),
        undrawn=len(spans) == _SPANS,
        webhooks=site.store.webhooks_of(job.id) if job.spec["webhook"] else [],
        again=_again(site, job),
    )


def _again(site: Site, job: Job) -> dict[str, Any] | None:
    """The settings, and the job as command and as Python; None if the row's spec cannot be read any more."""
    try:
        spec = JobSpec.of_stored(job.spec)
    except ValidationError:
        return None
    prompts = None if spec.dataset else recipe.few_texts(_first_prompts(site, job)) or None
    return {
        "settings": list(_settings(spec)),
        "command": recipe.as_command(spec, prompts),
        "python": recipe.as_python(spec, prompts),
        "needs_file": spec.dataset is None and spec.source is None and prompts is None,
    }


def _settings(spec: JobSpec) -> Iterator[tuple[str, str, bool]]:
    """(name, value, whether it is the default) of what was settled. A webhook's address may be a secret."""
    defaults = JobSpec(model="x").model_dump(mode="json")
    of_dataset = () if spec.dataset else ("split", "prompt_seed")
    for name, value in spec.model_dump(mode="json", exclude={"webhook", *of_dataset, *_NO_SETTINGS}).items():
        if value not in (None, {}):
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield name, shown, value == defaults[name]


def _first_prompts(site: Site, job: Job) -> list[SnapshotRow]:
    """All prompts of a job that has few; of another, enough to see that it has more. None if they are gone."""
    try:
        return list(islice(_prompts(site, job), 5))
    except ResultsError:
        return []


def _prompts(site: Site, job: Job) -> Iterator[SnapshotRow]:
    """Those that there are. Of a stream there may be none yet, or what is none: that was never a prompt."""
    last = site.store.shards(job.id, after=job.num_shards - 2, limit=1)
    rows = read_all(site.paths(job.id), last[0].segment + 1) if last else iter(())
    return (row for row in rows if row.error is None)


@router.get("/prompts.jsonl")
def prompts(site: TheSite, job_id: str) -> StreamingResponse:
    """The prompts as they were given, to submit them again."""
    job = site.store.job(job_id)
    rows = _prompts(site, job)
    first = list(islice(rows, 1))  # what cannot be read is said before anything was sent
    headers = {"Content-Disposition": f'attachment; filename="{job.id}-prompts.jsonl"'}
    return StreamingResponse(map(_as_given, chain(first, rows)), media_type="application/x-ndjson", headers=headers)


def _as_given(row: SnapshotRow) -> str:
    fields = {name: value for name, value in asdict(row).items() if value is not None and name != "prompt_index"}
    if row.custom_id == str(row.prompt_index):
        del fields["custom_id"]
    return line(fields)


@router.get("/shards")
def shards(
    request: Request, site: TheSite, job_id: str, state: ShardState | None = None, after: int = Query(-1, ge=-1)
) -> Response:
    def make() -> Response:
        job = site.store.job(job_id)
        found, following = _shards(site, job, [state] if state else None, after)
        states = [(state, getattr(job, f"{state}_shards")) for state in ShardState]
        values = head(site, job, "shards")
        return page(request, "job_shards.html", **values, shards=found, states=states, state=state, next=following)

    return polled(request, make, by_caller=True)


@router.get("/files")
def files(request: Request, site: TheSite, job_id: str, after: int = Query(-1, ge=-1)) -> Response:
    def make() -> Response:
        job = site.store.job(job_id)
        found, following = _shards(site, job, [ShardState.DONE], after)
        return page(request, "job_files.html", **head(site, job, "files"), shards=found, next=following)

    return polled(request, make, by_caller=True)


def _shards(site: Site, job: Job, states: list[ShardState] | None, after: int) -> tuple[list[Shard], int | None]:
    """A page of shards, and after which index the next one begins, if there is one."""
    found = site.store.shards(job.id, states=states, after=after, limit=_SHARDS + 1)
    return found[:_SHARDS], found[_SHARDS - 1].index if len(found) > _SHARDS else None


@router.get("/errors")
def errors(request: Request, site: TheSite, job_id: str, after: int = Query(-1, ge=-1)) -> Response:
    def make() -> Response:
        job = site.store.job(job_id)
        failed = list(islice(site.store.iter_shards(job.id, ShardState.FAILED), _REASONS)) if job.failed_shards else []
        found, following = prompt_errors(site, job, after)
        values = head(site, job, "errors")
        return page(request, "job_errors.html", **values, failed=failed, errors=found, next=following)

    return polled(request, make, by_caller=True)


@router.get("/log")
def log(request: Request, site: TheSite, job_id: str) -> Response:
    def make() -> Response:
        job = site.store.job(job_id)
        lines = tail(site.store, site.settings.results, job.id, _LINES)
        return page(request, "job_log.html", **head(site, job, "log"), lines=lines, cut=len(lines) == _LINES)

    return polled(request, make, by_caller=True)
