"""Who runs jobs, as `seqproc workers` tells it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from webui.polled import polled
from webui.site import TheSite
from webui.templates import page

router = APIRouter()


@router.get("/workers")
def workers(request: Request, site: TheSite) -> Response:
    return polled(request, lambda: page(request, "workers.html", workers=site.client.workers()))
