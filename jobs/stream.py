"""A job's rows as its shards are done: while it runs, each row once, to its end.

Shards come whole and in the order in which they were done, within one in order of (prompt_index, sample_index). That
order grows at its end alone, and a done shard never changes: a retry touches only what failed or was cancelled. So the
cursor of a row, its place in that order, stays good for as long as the job: over a cut connection, a restart of server
or client, and a retry.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from jobs.access import Access, Helper
from jobs.errors import Incomplete, StoreError, UsageError
from jobs.paging import JobId, Number, Offset, cursor, place_of
from jobs.patience import Patience
from jobs.records import Job, Shard
from jobs.results import ResultFile, rows_of
from jobs.states import ShardState
from jobs.text import plural

Place = tuple[JobId, Number, Offset]
"""(job, how many of its shards were begun in the order in which they were done, rows of the last that were read)."""

_LOOK_EVERY = 0.25  # seconds between looks at a job of which nothing new is done
_FILES = 100  # that are looked up at once
SHOWN = 3  # missing shards that are named
MISSING = (ShardState.FAILED, ShardState.CANCELLED)


def place_after(job_id: str, after: str | None) -> Place:
    """Where to go on. Raises UsageError for a cursor that is none, or another job's."""
    if after is None:
        return job_id, 0, 0
    place: Place = place_of(after, Place)
    if place[0] != job_id:
        raise UsageError(f"the cursor is one of job {place[0]}, not of {job_id}: each job's rows have their own")
    return place


def rows_after(place: Place, file: ResultFile) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The rows of a done shard's file behind a place, each with its own place. Raises ResultsError."""
    job_id, order, read = place
    assert file.done_order is not None
    skip = read if file.done_order == order else 0
    if skip < file.sequences:
        for number, row in enumerate(islice(rows_of([file]), skip, None), start=skip + 1):
            yield (job_id, file.done_order, number), row


def with_cursor(place: Place, row: dict[str, Any]) -> dict[str, Any]:
    """The row as a stream gives it."""
    return row | {"cursor": cursor(place)}


def stream(access: Access, job_id: str, helper: Helper, *, after: str | None) -> Iterator[dict[str, Any]]:
    """The rows behind a cursor until the job has ended; see `JobHandle.stream`."""
    place, patience = place_after(job_id, after), Patience()
    whole = max(place[1] - 1, 0)  # how many of its shards were read whole
    results = access.results(job_id)
    while True:
        files: list[ResultFile] = []
        try:
            helper.look()
            job = access.job(job_id)  # before its shards: all of one that has ended are there
            if not job.state.ended:
                helper.help(job)
            files = access.done_files(job_id, after=whole, limit=_FILES)
            for file in results.here(files):
                for behind, row in rows_after(place, file):
                    place = behind
                    yield with_cursor(place, row)
                whole = file.done_order or whole
            patience.renew()
        except StoreError as failure:  # what was read stays read: it goes on at its place
            patience.bear(failure)
        else:
            if len(files) == _FILES:
                continue
            if job.state.ended:
                helper.finish()
                check_whole(access, job, place)
                return
        time.sleep(_LOOK_EVERY)


def check_whole(access: Access, job: Job, place: Place) -> None:
    """Raises Incomplete if not every shard of the ended job is done."""
    if job.done_shards < job.num_shards:
        lost = access.shards(job.id, states=MISSING, limit=SHOWN)
        raise Incomplete(what_is_missing(job, lost, cursor(place)), cursor(place))


def what_is_missing(job: Job, lost: Sequence[Shard], after: str) -> str:
    """The sentence at the end of a job of which shards are missing. `lost`: the first `SHOWN` of them."""
    missing = job.num_shards - job.done_shards
    prompts = [f"{shard.first_prompt}–{shard.first_prompt + shard.stop - shard.start - 1}" for shard in lost]
    more = ", …" if missing > len(lost) else ""
    why = f" ({job.error})" if job.error else ""
    return (
        f"job {job.id} {job.state}{why}: {plural(missing, 'shard')} of {job.num_shards:,} will not come, prompts "
        f"{', '.join(prompts)}{more}. All that is done was given; after a retry the rest comes behind the cursor "
        f"{after}"
    )
