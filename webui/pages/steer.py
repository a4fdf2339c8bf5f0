"""What its owner can do to one job: cancel, retry, delete. Each button asks before it posts here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from starlette.responses import RedirectResponse

from jobs import JobHandle
from webui.caller import Caller, TheCaller
from webui.site import Site, TheSite

router = APIRouter()


@router.post("/jobs/{job_id}/cancel")
def cancel(site: TheSite, caller: TheCaller, job_id: str) -> RedirectResponse:
    handle = _steered(site, caller, job_id)
    handle.cancel()
    return RedirectResponse(f"/jobs/{handle.id}", 303)


@router.post("/jobs/{job_id}/retry")
def retry(
    site: TheSite, caller: TheCaller, job_id: str, failed_only: Annotated[bool, Form()] = False
) -> RedirectResponse:
    handle = _steered(site, caller, job_id)
    handle.retry(failed_only=failed_only)
    return RedirectResponse(f"/jobs/{handle.id}", 303)


@router.post("/jobs/{job_id}/delete")
def delete(site: TheSite, caller: TheCaller, job_id: str) -> RedirectResponse:
    _steered(site, caller, job_id).delete()
    return RedirectResponse("/jobs", 303)


def _steered(site: Site, caller: Caller, job_id: str) -> JobHandle:
    """The job, if the caller may change it. Raises JobNotFound, or HTTPException 403."""
    handle = site.client.get(job_id)
    caller.check_may_steer(handle.record)
    return handle
