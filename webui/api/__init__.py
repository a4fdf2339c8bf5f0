"""The HTTP API, under /api/v1: what `jobs.Client` offers, for whoever is not on this machine; and its description."""

from __future__ import annotations

from fastapi import APIRouter, Security
from fastapi.security import HTTPBearer

from webui.api import docs, feed, jobs, results, sidecars, stream, submit
from webui.api.shapes import EVERYWHERE

_TOKEN = HTTPBearer(auto_error=False, description="The server's token, if it has one.")  # the guard asks for it

router = APIRouter()
for part in (feed, submit, jobs, results, sidecars, stream):
    router.include_router(part.router, prefix="/api/v1", responses=EVERYWHERE, dependencies=[Security(_TOKEN)])
router.include_router(docs.router)
