"""A job's rows as its shards are done: one answer that goes on for as long as the job does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from jobs.jsonl import line
from jobs.paging import cursor
from jobs.parquet import batches
from jobs.records import Job
from jobs.results import of_shard
from jobs.stream import MISSING, SHOWN, place_after, rows_after, what_is_missing, with_cursor
from webui.api.shapes import NO_JOB, TheJob
from webui.site import Site, TheSite

router = APIRouter(tags=["results"])

AT_ONCE = 50  # streams of one server
HEARTBEAT_SECONDS = 5.0  # of silence, after which an empty line says that the connection lives
_LOOK_EVERY = 0.5  # seconds between looks at a job of which nothing new is done
_ROWS = 32  # that are made at once
_SHARDS = 50  # that are looked up at once
_JSONL = "application/x-ndjson"
_DESCRIPTION = f"""Lines of JSON: one sequence each, with its `cursor` beside the columns of `rows`, in the order in
which their shards were done, until the job has ended.

The last line is `{{"end": {{"state": …, "missing": …}}}}`; without it the answer was cut: ask again with `after`, the
cursor of the last row that came. `missing` is null, or says which sequences will not come. While nothing is done an
empty line comes every {HEARTBEAT_SECONDS:g} s. A connection from which nothing is taken for a minute is closed."""


class _Stream:
    """One reader's place in one job. Each step is for a thread: it waits for the database and the disk."""

    def __init__(self, site: Site, job: Job, after: str | None) -> None:
        self._site, self._job = site, job
        self._place = place_after(job.id, after)
        self._whole = max(self._place[1] - 1, 0)
        self._pieces: Iterator[str] = iter(())

    def next(self) -> str | None:
        """Some lines; None if nothing new is done."""
        piece = next(self._pieces, None)
        if piece is None:
            self._pieces = self._new_pieces()
            piece = next(self._pieces, None)
        return piece

    def look(self) -> Job:
        """The job: if it has ended now, `next` will have all that was done of it."""
        return self._site.store.job(self._job.id)

    def last_line(self, job: Job) -> str:
        missing = None
        if job.done_shards < job.num_shards:
            lost = self._site.store.shards(job.id, states=MISSING, limit=SHOWN)
            missing = what_is_missing(job, lost, cursor(self._place))
        return line({"end": {"state": job.state, "missing": missing}})

    def _new_pieces(self) -> Iterator[str]:
        paths = self._site.paths(self._job.id)
        for shard in self._site.store.done_after(self._job.id, self._whole, limit=_SHARDS):
            file = of_shard(self._site.store, paths, self._job.spec, shard)
            for rows in batches(rows_after(self._place, file), _ROWS):
                self._place = rows[-1][0]
                yield "".join(line(with_cursor(place, row)) for place, row in rows)
            self._whole = shard.done_order or self._whole


@router.get(
    "/jobs/{job}/stream",
    response_class=StreamingResponse,
    responses=NO_JOB | {200: {"description": "The lines.", "content": {_JSONL: {"schema": {"type": "string"}}}}},
    summary="A job's sequences as its shards are done",
    description=_DESCRIPTION,
)
async def stream(
    site: TheSite, job: TheJob, after: Annotated[str | None, Query(description="`cursor` of the last row.")] = None
) -> StreamingResponse:
    if site.streams >= AT_ONCE:
        raise HTTPException(503, "Too many streams are under way. Try again.", {"Retry-After": "5"})
    return StreamingResponse(_counted(site, _Stream(site, job, after)), media_type=_JSONL)


async def _counted(site: Site, reader: _Stream) -> AsyncIterator[str]:
    site.streams += 1
    try:
        async for piece in _lines(reader):
            yield piece
    finally:
        site.streams -= 1


async def _lines(reader: _Stream) -> AsyncIterator[str]:
    said = time.monotonic()
    while True:
        job = await run_in_threadpool(reader.look)
        while (piece := await run_in_threadpool(reader.next)) is not None:
            yield piece
            said = time.monotonic()
        if job.state.ended:
            yield await run_in_threadpool(reader.last_line, job)
            return
        if time.monotonic() - said >= HEARTBEAT_SECONDS:
            yield "\n"
            said = time.monotonic()
        await asyncio.sleep(_LOOK_EVERY)
