"""Workers, as the command line tells of them."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from jobs.processes import this_process
from jobs.store.schema import workers as table
from tests.house import House
from tests.web.pages.conftest import Browser
from webui import templates


def test_nobody(browser: Browser) -> None:
    assert "seqproc worker" in browser.see("/workers").one("pre").text


def test_what_each_is_at(browser: Browser, house: House) -> None:
    for worker in ("busy", "paused", "silent"):
        house.store.register_worker(worker, this_process(), queues=["default", "big"], device="cuda:0")
    house.store.worker_beat("busy", job_id="abcdef012345", shard=7, tokens_per_second=1234.5, model="org/model")
    house.store.worker_beat("busy", memory_used=30_000_000_000, memory_total=80_000_000_000)
    house.store.worker_beat("paused", paused="the disk is full")
    with house.store.db.transaction() as connection:
        connection.execute(update(table).where(table.c.id == "silent").values(seen_at=house.store.clock() - 7200))
    page = browser.see("/workers")
    busy, paused, silent = page.rows
    assert busy[1:8] == [
        "working",
        "cuda:0",
        "30.0 GB of 80.0 GB",
        "org/model",
        "default, big",
        "abcdef012345 / 7",
        "1,234",
    ]
    assert page.one("a", id="job-of-1")["href"] == "/jobs/abcdef012345"
    assert paused[1] == "paused the disk is full"
    assert silent[1] == "silent does not answer"
    assert silent[8] == "2 h ago"


def test_a_whole_page_renders_once_what_polls(browser: Browser, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.store.register_worker("w1", this_process(), queues=["default"], device="cpu")
    rendered: list[float] = []
    monkeypatch.setitem(templates._environment.filters, "ago", lambda epoch: rendered.append(epoch))
    assert "w1" in browser.see("/workers").text
    assert len(rendered) == 1
