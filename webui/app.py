"""The web application, put together: the API, the pages, the pictures, and who is let in."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from jobs.settings import Settings
from webui import api, health, pages, pictures, refusals
from webui.guard import Guard
from webui.site import Site


def create_app(settings: Settings, *, loopback: bool) -> FastAPI:
    """The application over the settings' database. `loopback`: whether only this machine can reach it."""
    app = FastAPI(title="SequenceProcessor", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.state.site = Site(settings)
    app.add_middleware(Guard, token=settings.token.get_secret_value() if settings.token else None, loopback=loopback)
    refusals.install(app)
    for module in (health, api, pages, pictures):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    return app
