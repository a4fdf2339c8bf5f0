"""The page of one prompt's responses, from the shard that holds it as soon as that is committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from jobs.errors import UsageError
from jobs.jsonl import read_jsonl
from jobs.parquet import read_prompt
from jobs.paths import JobPaths
from jobs.records import Job, Shard
from jobs.results import of_shard
from jobs.sidecars import of_prompt
from jobs.states import ShardState
from jobs.tint import NAMES
from webui.pages.job import head
from webui.pictures.responses import COLUMNS, By, Sort, ordered, passage, prompt_text
from webui.site import Site, TheSite
from webui.templates import page

router = APIRouter(include_in_schema=False)

PAGE = 8  # responses
_SHORT, _LONG = 1_200, 6_000  # tokens of each response on a page of several, and of one alone
_BY_NAMES: dict[By, str] = {
    "logprob": "log-probability",
    "entropy": "entropy",
    "sampling_logprob": "sampling log-probability",
    "sampling_entropy": "sampling entropy",
}
_LEGENDS: dict[By, str] = {
    "logprob": "−log p",
    "entropy": "entropy",
    "sampling_logprob": "−log q",
    "sampling_entropy": "sampling entropy",
}
_SORT_NAMES: dict[Sort, str] = {
    "sample": "sample",
    "tokens": "length",
    "sum": "sum of what tints",
    "mean": "mean of what tints",
}


@dataclass(frozen=True, slots=True)
class View:
    """What is looked at: all of it stands in the address, so that a link shows exactly this."""

    prompt: int
    by: By | None
    sort: Sort = "sample"
    order: Literal["asc", "desc"] = "asc"
    page: int = 1
    sample: int | None = None  # only this response
    start: int = 0  # its first token

    def link(self, **changes: Any) -> str:
        """The address, relative to the page, of this view with changes."""
        fields = {name: getattr(self, name) for name in self.__slots__} | changes
        fields["from"] = fields.pop("start")
        plain = {"sort": "sample", "order": "asc", "page": 1, "sample": None, "from": 0, "by": None}
        return "?" + urlencode({name: value for name, value in fields.items() if value != plain.get(name, "")})


@router.get("/jobs/{job_id}/sequences")
def sequences(
    request: Request,
    site: TheSite,
    job_id: str,
    prompt: Annotated[int | None, Query(ge=0)] = None,
    by: By | None = None,
    sort: Sort = "sample",
    order: Literal["asc", "desc"] = "asc",
    number: Annotated[int, Query(alias="page", ge=1)] = 1,
    sample: Annotated[int | None, Query(ge=0)] = None,
    start: Annotated[int, Query(alias="from", ge=0)] = 0,
) -> Response:
    job = site.store.job(job_id)
    offered = _offered(job, by)
    shown = _first(site, job) if prompt is None else prompt
    if shown and shown >= job.num_prompts:
        there = f"they are counted from 0 to {job.num_prompts - 1}" if job.num_prompts else "none has come"
        raise UsageError(f"job {job.id} has no prompt {shown}: {there}{'' if job.sealed else ' so far'}")
    view = View(shown, by or next(iter(offered), None), sort, order, number, sample, start)
    values: dict[str, Any] = {
        **head(site, job, "sequences"),
        "view": view,
        "offered": offered,
        "sorts": _SORT_NAMES,
        "legend": view.by and _LEGENDS[view.by],
        "steps": NAMES,
    }
    return page(request, "pictures/sequences.html", **values, **_content(site, job, view))


def _offered(job: Job, by: By | None) -> dict[By, str]:
    """What can tint, by its name. Raises UsageError for what was not measured."""
    measured = job.spec["measurements"] or ()
    offered = {name: title for name, title in _BY_NAMES.items() if COLUMNS[name] in measured}
    if by is not None and by not in offered:
        has = ", ".join(measured) or "no measurements"
        raise UsageError(f"job {job.id} did not measure {COLUMNS[by]}; it has {has}")
    return offered


def _first(site: Site, job: Job) -> int:
    """The first prompt that there is something of."""
    done = next(site.store.iter_shards(job.id, ShardState.DONE), None)
    return done.first_prompt if done else 0


def _content(site: Site, job: Job, view: View) -> dict[str, Any]:
    """The prompt with those of its responses that are looked at, or in `missing` why there are none."""
    if not job.num_prompts:
        return {"missing": f"No prompt came{'' if job.sealed else ' so far'}.", "waiting": not job.state.ended}
    shard = site.store.shard_of(job.id, view.prompt)
    paths = site.paths(job.id)
    rows = _rows(site, job, shard, view.prompt) if shard.file else []
    if not rows:
        return {"missing": _missing(paths, shard, view.prompt), "waiting": not (shard.file or job.state.ended)}
    column = COLUMNS[view.by] if view.by else None
    rows = ordered(rows, column, view.sort, descending=view.order == "desc")
    chosen = rows[(view.page - 1) * PAGE : view.page * PAGE]
    if view.sample is not None:
        chosen = [row for row in rows if row["sample_index"] == view.sample]
    room = _SHORT if view.sample is None else _LONG
    if not chosen:
        raise UsageError(f"prompt {view.prompt} has {len(rows):,} responses, {PAGE} a page; there are none here")
    return {
        "missing": None,
        "waiting": False,
        "custom_id": rows[0]["custom_id"] or "",
        "prompt_text": prompt_text(rows[0]),
        "prompt_tokens": len(rows[0]["prompt_ids"]),
        "gold": rows[0]["answer"],
        "passages": [passage(row, view.by, view.start if view.sample is not None else 0, room) for row in chosen],
        "room": room,
        "responses": len(rows),
        "pages": -(-len(rows) // PAGE),
    }


def _rows(site: Site, job: Job, shard: Shard, prompt: int) -> list[dict[str, Any]]:
    """The prompt's rows with the job's rewards."""
    file = of_shard(site.store, site.paths(job.id), job.spec, shard)
    none = dict.fromkeys(added.column for added in file.added)
    judged = of_prompt(file, prompt)
    return [row | none | judged.get(row["sample_index"], {}) for row in read_prompt(file.path, prompt)]


def _missing(paths: JobPaths, shard: Shard, prompt: int) -> str:
    if shard.state is ShardState.DONE:
        errors = read_jsonl(paths.resolve(shard.errors_file)) if shard.errors_file else iter(())
        found = next((error["error"] for error in errors if error["prompt_index"] == prompt), "its reason is not known")
        return f"Prompt {prompt} failed: {found}"
    why = f": {shard.error}" if shard.state is ShardState.FAILED and shard.error else ""
    return f"There is nothing of prompt {prompt} yet: its shard {shard.index} is {shard.state}{why}"
