"""For whoever watches over the process: does it live, can it work, and figures for Prometheus."""

from __future__ import annotations

import logging

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from jobs.errors import SeqprocError
from jobs.metrics import StoreCollector
from webui.site import TheSite

log = logging.getLogger(__name__)

OPEN = ("/healthz", "/readyz")
"""What needs no token: whoever watches over the process has none."""

router = APIRouter(include_in_schema=False, default_response_class=PlainTextResponse)


@router.get("/healthz")
def healthz() -> str:
    return "ok\n"


@router.get("/readyz")
def readyz(site: TheSite) -> PlainTextResponse:
    try:
        site.check()
    except SeqprocError as error:
        log.error("not ready: %s", error)  # the reason names places: not for whoever asks without a token
        return PlainTextResponse("not ready, see the log\n", 503)
    return PlainTextResponse("ready\n")


@router.get("/metrics")
def metrics(site: TheSite) -> PlainTextResponse:
    registry = CollectorRegistry()
    try:
        registry.register(StoreCollector(site.store))
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
    except SeqprocError as error:
        log.error("no figures: %s", error)
        return PlainTextResponse(f"{error}\n", 503)
