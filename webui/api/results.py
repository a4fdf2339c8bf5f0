"""What a job made: its sequences as rows, prompt errors, the manifest, and files by shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from pydantic import StringConstraints

from jobs import paging
from jobs.errors import NotFinished, ResultsError, UsageError
from jobs.files import reading
from jobs.jsonl import read_jsonl
from jobs.manifest import build
from jobs.paging import Number, Offset, Page, place_of
from jobs.parquet import pick_rows
from jobs.paths import JobPaths
from jobs.ranking import SCANNED, Measure, Ranked, rank
from jobs.records import Job, Shard
from jobs.results import ResultFile, added_columns, files_of, of_shard
from jobs.rewards.registry import NAME
from jobs.sidecars import REWARD, with_added
from jobs.states import ShardState
from webui.api.shapes import NO_JOB, NOT_NOW, Cursor, Limit, PromptError, Row, RowsPage, TheJob, refusals
from webui.site import Site, TheSite

router = APIRouter(tags=["results"])

RewardColumn = Annotated[str, StringConstraints(pattern=f"^{REWARD}_{NAME.pattern}$")]
Part = tuple[Number, Offset]  # (shard, rows or lines of it that were read)

_PAGE_TOKENS = 250_000  # of a page of rows; it is cut short behind the sequence that reaches them
_PARQUET, _JSONL = "application/vnd.apache.parquet", "application/x-ndjson"
RANGES = refusals(s400="The range makes no sense.") | {
    206: {"description": "The range that was asked for."},
    416: {"description": "The file ends before the range begins."},
}
SHARD = PathParameter(ge=0, lt=2**31, description="Number of the shard.")
_ROWS = f"""Committed sequences in order of (prompt_index, sample_index), also while the job runs.

A page is shorter than `limit` where its sequences are long. With `sort`, by a measurement or by `reward_NAME`, equals
stand in that order, and a mean over no tokens or what was not judged comes last; the first {SCANNED:,} sequences of the
job are compared, or with `prompt` those of that prompt."""


@router.get("/jobs/{job}/rows", responses=NO_JOB, summary="A job's sequences", description=_ROWS)
def rows(
    site: TheSite,
    job: TheJob,
    prompt: Annotated[int | None, Query(ge=0, lt=2**53, description="Only of this prompt, counted from 0.")] = None,
    sort: Annotated[Measure | RewardColumn | None, Query(description="Order by this instead.")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="Of `sort`.")] = "asc",
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=500, description="At most so many.")] = 50,
) -> RowsPage:
    if sort is not None:
        return _sorted_rows(site, job, sort, order == "desc", prompt, cursor, limit)
    return _cut(_rows_from(site, job, place_of(cursor, Part) or (0, 0), prompt), limit)


@router.get("/jobs/{job}/errors", responses=NO_JOB, summary="A job's prompts that could not be done")
def errors(
    site: TheSite,
    job: TheJob,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[PromptError]:
    found = list(islice(_errors_from(site, job, place_of(cursor, Part) or (0, 0)), limit))
    more = paging.cursor(found[-1][0]) if len(found) == limit else None
    return Page(items=[error for _, error in found], next=more)


@router.get("/jobs/{job}/manifest", responses=NO_JOB, summary="What a job's folder holds and how it came about")
def manifest(site: TheSite, job: TheJob) -> dict[str, Any]:
    return build(site.store, job.id)


@router.head("/jobs/{job}/files/{shard}", include_in_schema=False)
@router.get(
    "/jobs/{job}/files/{shard}",
    response_class=FileResponse,
    responses=NO_JOB | NOT_NOW | RANGES | {200: {"description": "The file.", "content": {_PARQUET: {}}}},
    summary="The Parquet file of a done shard",
)
def file(site: TheSite, job: TheJob, shard: Annotated[int, SHARD]) -> FileResponse:
    """Ranges are served; the ETag is the file's sha256."""
    done = _done(site, job, shard)
    return parquet_file(site, job, done.file or "", done.sha256, f"{job.id}-{shard:06d}.parquet")


@router.head("/jobs/{job}/files/{shard}/errors", include_in_schema=False)
@router.get(
    "/jobs/{job}/files/{shard}/errors",
    response_class=FileResponse,
    responses=NO_JOB | NOT_NOW | RANGES | {200: {"description": "The file.", "content": {_JSONL: {}}}},
    summary="The prompt errors of a done shard, as JSON lines",
)
def errors_file(site: TheSite, job: TheJob, shard: Annotated[int, SHARD]) -> FileResponse:
    done = _done(site, job, shard)
    if done.errors_file is None:
        raise NotFinished(f"shard {shard} of job {job.id} has no prompt errors")
    digest = JobPaths.digest_in(done.errors_file)
    return _file(site, job, done.errors_file, digest, f"{job.id}-{shard:06d}-errors.jsonl", _JSONL)


def parquet_file(site: Site, job: Job, name: str, sha256: str | None, called: str) -> FileResponse:
    """A Parquet file of the job's folder. Raises ResultsError if it is missing."""
    return _file(site, job, name, sha256, called, _PARQUET)


def _done(site: Site, job: Job, index: int) -> Shard:
    shard = site.store.shard(job.id, index)
    if shard.state is not ShardState.DONE:
        raise NotFinished(f"shard {index} of job {job.id} is {shard.state}: it has a file once it is done")
    return shard


def _file(site: Site, job: Job, name: str, sha256: str | None, called: str, media_type: str) -> FileResponse:
    path = site.paths(job.id).resolve(name)
    with reading(path):
        stat = path.stat()
    headers = {"ETag": f'"{sha256}"'} if sha256 else {}
    return FileResponse(path, headers=headers, stat_result=stat, media_type=media_type, filename=called)


def _done_shards(site: Site, job: Job, first: int, prompt: int | None) -> Iterator[Shard]:
    """The done shards from this index on; of one prompt, the shard that holds it, if it is done."""
    if prompt is None:
        return site.store.iter_shards(job.id, ShardState.DONE, after=first - 1)
    shard = site.store.shard_of(job.id, prompt)
    return iter([shard] if shard.state is ShardState.DONE and shard.index >= first else [])


def _rows_from(site: Site, job: Job, start: Part, prompt: int | None) -> Iterator[tuple[Part, Row]]:
    """Rows behind a place, each with its own place."""
    for shard in _done_shards(site, job, start[0], prompt):
        skip = start[1] if shard.index == start[0] else 0
        file = of_shard(site.store, site.paths(job.id), job.spec, shard)
        rows = with_added(file, pick_rows(file.path, range(skip, shard.sequences)), range(skip, shard.sequences))
        for number, row in enumerate(rows, start=skip + 1):
            if prompt is None or row["prompt_index"] == prompt:
                yield (shard.index, number), row
            elif row["prompt_index"] > prompt:
                break


def _sorted_rows(
    site: Site, job: Job, by: Measure | str, descending: bool, prompt: int | None, cursor: str | None, limit: int
) -> RowsPage:
    paths, done = site.paths(job.id), _done_shards(site, job, 0, prompt)
    files: Iterator[ResultFile]
    if isinstance(by, Measure):
        if by is not Measure.LENGTH and by.column not in job.spec["measurements"]:
            raise UsageError(f"job {job.id} did not measure {by.column}; sort by length or by what it measured")
        files = (ResultFile.of(shard, paths.resolve(shard.file or ""), None) for shard in done)
    else:
        has = added_columns(job.spec, (f"{kind}_{name}" for kind, name in site.store.sidecar_names(job.id)))
        if by not in has:
            raise UsageError(f"job {job.id} has no {by}; it has {', '.join(has) or 'no rewards'}")
        files = iter(files_of(site.store, paths, job.spec, list(done)))

    def row(ranked: Ranked) -> Row:
        shard = site.store.shard(job.id, ranked.file.shard or 0)
        file = of_shard(site.store, paths, job.spec, shard)
        found = next(with_added(file, pick_rows(file.path, [ranked.position]), [ranked.position]), None)
        if found is None:
            raise ResultsError(f"{file.path} has changed while it was read; ask again")
        return found

    after = place_of(cursor, tuple[float, Offset, Number])
    ranked, scanned = rank(files, by, descending=descending, prompt_index=prompt, after=after, limit=limit)
    return _cut(((one.place, row(one)) for one in ranked), limit, scanned)


def _cut(rows: Iterable[tuple[Any, Row]], limit: int, scanned: int | None = None) -> RowsPage:
    """A page of rows, each behind its own place: `limit` of them, or as many as reach `_PAGE_TOKENS`."""
    found: list[Row] = []
    tokens = 0
    for place, row in rows:
        found.append(row)
        tokens += _weight(row)
        if len(found) == limit or tokens >= _PAGE_TOKENS:
            return RowsPage(items=found, next=paging.cursor(place), scanned=scanned)
    return RowsPage(items=found, next=None, scanned=scanned)


def _weight(row: Row) -> int:
    """Tokens of the row, one of them counting more by each of its alternatives."""
    alternatives = row.get("top_ids") or [[]]
    return len(row["response_ids"]) * (1 + len(alternatives[0]))


def _errors_from(site: Site, job: Job, start: Part) -> Iterator[tuple[Part, PromptError]]:
    """Prompt errors behind a place, each with its own place."""
    for shard in _done_shards(site, job, start[0], None):
        skip = start[1] if shard.index == start[0] else 0
        if shard.errors_file is not None and skip < shard.prompt_errors:
            lines = islice(read_jsonl(site.paths(job.id).resolve(shard.errors_file)), skip, None)
            for number, line in enumerate(lines, start=skip + 1):
                yield (shard.index, number), PromptError(**line)
