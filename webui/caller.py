"""Who asks: the name that jobs are submitted under, and whose jobs may be changed under it.

Whoever may come in sees every job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from jobs.records import Job


@dataclass(frozen=True, slots=True)
class Caller:
    """`operator`: may change everybody's jobs."""

    name: str
    operator: bool

    def may_steer(self, job: Job) -> bool:
        """Whether the caller may cancel, retry and delete this job."""
        return self.operator or job.owner == self.name

    def check_may_steer(self, job: Job) -> None:
        """Raises HTTPException, 403, unless the caller may cancel, retry and delete this job."""
        if not self.may_steer(job):
            raise HTTPException(
                403, f"Job {job.id} belongs to {job.owner}, and you are {self.name}: ask its owner or the operator."
            )


async def _caller(connection: HTTPConnection) -> Caller:  # async: not worth a thread
    caller: Caller = connection.state.caller  # the guard lets nobody in without
    return caller


TheCaller = Annotated[Caller, Depends(_caller)]
"""A route's parameter of this type is who asks."""
