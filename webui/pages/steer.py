"""What its owner can do to one job: cancel, retry, delete. Each button asks before it posts here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from starlette.responses import RedirectResponse

from webui.caller import TheCaller
from webui.site import TheSite

router = APIRouter()


@router.post("/jobs/{job_id}/cancel")
def cancel(site: TheSite, caller: TheCaller, job_id: str) -> RedirectResponse:
    handle = site.steered(job_id, caller)
    handle.cancel()
    return RedirectResponse(f"/jobs/{handle.id}", 303)


@router.post("/jobs/{job_id}/retry")
def retry(
    site: TheSite, caller: TheCaller, job_id: str, failed_only: Annotated[bool, Form()] = False
) -> RedirectResponse:
    handle = site.steered(job_id, caller)
    handle.retry(failed_only=failed_only)
    return RedirectResponse(f"/jobs/{handle.id}", 303)


@router.post("/jobs/{job_id}/delete")
def delete(site: TheSite, caller: TheCaller, job_id: str) -> RedirectResponse:
    site.steered(job_id, caller).delete()
    return RedirectResponse("/jobs", 303)
