"""A view is made once for all who ask at about the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.responses import HTMLResponse

from webui import polled
from webui.polled import Views


def answer(text: str) -> HTMLResponse:
    return HTMLResponse(text, headers={"ETag": f'"{text}"', "Vary": "HX-Request"})


def test_of_those_who_ask_at_once_one_makes_it() -> None:
    views, made, gate = Views(), [], threading.Barrier(16)

    def make() -> HTMLResponse:
        made.append(1)
        return answer("a")

    def ask(_number: int) -> bytes:
        gate.wait()
        return views.get("/jobs", make).body

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(16))) == {b"a"}
    assert len(made) == 1


def test_it_is_made_anew_when_it_is_old_and_kept_apart_by_url(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(polled.time, "monotonic", lambda: now)
    views = Views()
    assert views.get("/a", lambda: answer("1")).body == b"1"
    assert views.get("/a", lambda: answer("2")).body == b"1"
    assert views.get("/b", lambda: answer("3")).body == b"3"
    now += 1.5
    assert views.get("/a", lambda: answer("2")).body == b"2"


def test_what_fails_is_not_kept() -> None:
    views = Views()
    with pytest.raises(ZeroDivisionError):
        views.get("/a", lambda: answer(str(1 // 0)))
    assert views.get("/a", lambda: answer("1")).body == b"1"


def test_only_so_many_are_kept() -> None:
    views = Views()
    for number in range(2000):
        views.get(f"/{number}", lambda: answer("x"))
    assert len(views._views) <= 256
