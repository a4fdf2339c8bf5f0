"""What every answer says to the browser, errors and files included."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from jobs.settings import Settings
from tests.web.conftest import Web
from tests.web.trust.conftest import BEARER, BROWSER, ask
from webui.app import create_app
from webui.guard import HEADERS


def test_on_every_answer(guarded: Web) -> None:
    for status, method, path, headers in (
        (200, "GET", "/healthz", {}),
        (200, "GET", "/login", {}),
        (200, "GET", "/metrics", BEARER),
        (200, "GET", "/openapi.json", BEARER),
        (303, "GET", "/jobs", BROWSER),
        (400, "GET", "/jobs", {"Host": "evil.example"}),
        (401, "GET", "/api/v1/nothing", {}),
        (403, "POST", "/login", {"Origin": "https://evil.example"}),
        (404, "GET", "/nothing", BEARER),
        (404, "GET", "/api/v1/nothing", BEARER),
        (404, "GET", "/static/nothing", {}),
        (405, "DELETE", "/login", {}),
        (413, "POST", "/login", {"Content-Length": "99999999"}),
    ):
        answer = ask(guarded, method, path, headers)
        assert answer.status == status, path
        for name, value in HEADERS.items():
            assert answer.headers[name.lower()] == value, (path, name)
        assert answer.headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store"), path
        assert "server" not in answer.headers


def test_nothing_inline_runs() -> None:
    rules = dict(rule.split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("frame-ancestors") == "'none'"
    assert rules.pop("img-src") == "'self' data:"
    assert set(rules.values()) == {"'self'"}


def broken_app() -> FastAPI:
    app = create_app(Settings(), loopback=True)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("secret-place")

    return app


@pytest.mark.usefixtures("isolated_home")
def test_on_what_was_not_foreseen() -> None:
    client = TestClient(broken_app(), base_url="http://localhost", raise_server_exceptions=False)
    answer = client.get("/broken")
    assert answer.status_code == 500
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "secret-place" not in answer.text
