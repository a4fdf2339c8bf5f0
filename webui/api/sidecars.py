"""Later measurements of a job's sequences: which there are, their files, and rewards that a client has judged.

A reward comes as numbers, one for each sequence of a shard: no code of a client ever runs here.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from jobs import paging
from jobs.errors import JobNotFound, NotFinished
from jobs.paging import Number, Page, place_of
from jobs.records import Sidecar
from jobs.rewards.registry import NAME
from jobs.sidecars import REWARD, Measured, keep_sidecar
from jobs.states import ShardState
from webui.api.results import RANGES, SHARD, parquet_file
from webui.api.shapes import NO_JOB, NOT_NOW, NOT_YOURS, Cursor, TheJob
from webui.caller import TheCaller
from webui.site import TheSite

router = APIRouter(tags=["results"])

_NAME = Path(pattern=f"^{NAME.pattern}$", description="Name of the reward.")
_KIND = Path(pattern="^[a-z]{1,32}$", description="Kind of the measurement: reward.")
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {"application/vnd.apache.parquet": {}}}
}


class Values(BaseModel):
    """A reward of one shard's sequences."""

    model_config = ConfigDict(extra="forbid")

    of_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the shard's file that was judged.")
    values: list[Annotated[float, Field(allow_inf_nan=False)] | None] = Field(
        description="One for each of its sequences, in their order; null: could not be judged."
    )


@router.get("/jobs/{job}/sidecars", responses=NO_JOB, summary="List later measurements, as rewards, by shard")
def sidecars(
    site: TheSite,
    job: TheJob,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Of so many shards at most.")] = 100,
) -> Page[Sidecar]:
    """Of some shards at a time, in order of the shards. `next` is null at the end."""
    first = place_of(cursor, Number) or 0
    last = first + limit - 1
    found = site.store.sidecars(job.id, first=first, last=last)
    found.sort(key=lambda sidecar: sidecar.shard)
    return Page(items=found, next=None if last + 1 >= job.num_shards else paging.cursor(last + 1))


@router.get(
    "/jobs/{job}/sidecars/{kind}/{name}/{shard}",
    response_class=FileResponse,
    responses=NO_JOB | NOT_NOW | RANGES | _FILE,
    summary="The Parquet file of a shard's later measurement",
)
def sidecar_file(
    site: TheSite,
    job: TheJob,
    kind: Annotated[str, _KIND],
    name: Annotated[str, _NAME],
    shard: Annotated[int, SHARD],
) -> FileResponse:
    """Columns prompt_index, sample_index, and one named like its kind. Ranges are served, the ETag is the sha256."""
    found = site.store.sidecar(job.id, kind, name, shard)
    if found is None:
        raise JobNotFound(f"shard {shard} of job {job.id} has no {kind} {name}")
    return parquet_file(site, job, found.file, found.sha256, f"{job.id}-{shard:06d}-{name}.parquet")


@router.put(
    "/jobs/{job}/rewards/{name}/{shard}",
    responses=NO_JOB | NOT_NOW | NOT_YOURS,
    summary="Store a reward of a done shard's sequences",
)
def put_reward(
    site: TheSite,
    caller: TheCaller,
    job: TheJob,
    name: Annotated[str, _NAME],
    shard: Annotated[int, SHARD],
    given: Values,
) -> Sidecar:
    """In place of the one that stands there under this name. The sequences stay as they are."""
    caller.check_may_steer(job)
    done = site.store.shard(job.id, shard)
    if done.state is not ShardState.DONE or done.file is None:
        raise NotFinished(f"shard {shard} of job {job.id} is {done.state}: its sequences can be judged once it is done")
    source = site.paths(job.id).resolve(done.file)
    return keep_sidecar(
        site.store, site.settings, source, Measured(job.id, REWARD, name, shard, given.of_sha256, given.values)
    )
