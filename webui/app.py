"""The web application, put together: the API, the pages, the pictures, and who is let in."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from jobs.settings import Settings
from webui import api, health, login, pages, pictures, refusals
from webui.entrance import Entrance
from webui.guard import Guard
from webui.site import Site


class _Guarded(FastAPI):
    """An application with the guard around all of it: around the answer to what was not foreseen as well."""

    loopback: bool

    def build_middleware_stack(self) -> ASGIApp:
        inner = super().build_middleware_stack()
        return Guard(inner, self.state.site.settings, self.state.entrance, loopback=self.loopback)


def create_app(settings: Settings, *, loopback: bool) -> FastAPI:
    """The application over the settings' database. `loopback`: whether only this machine can reach it."""
    app = _Guarded(title="SequenceProcessor", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.loopback = loopback
    app.state.site = Site(settings)
    app.state.entrance = Entrance(settings)
    refusals.install(app)
    for module in (health, login, api, pages, pictures):
        app.include_router(module.router)
    static = StaticFiles(directory=Path(__file__).parent / "static", packages=[("jobs.charts", "static")])
    app.mount("/static", static, name="static")
    return app
