"""`workers`: who is there, on what, at what, since when; and who only looks as if."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import update

from jobs.client import Client
from jobs.processes import ProcessName, process_named, this_process
from jobs.store.schema import workers as table
from tests.cli.conftest import COLOUR, Run, the_json


def register(client: Client, worker_id: str, process: ProcessName | None = None, **columns: Any) -> None:
    client.store.register_worker(worker_id, process or this_process(), queues=["default", "big"])
    with client.store.db.transaction() as connection:
        if columns:
            connection.execute(update(table).where(table.c.id == worker_id).values(**columns))


def gone() -> ProcessName:
    """A process of this host that is no more."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_named(process.pid)
    process.kill()
    process.communicate()
    return name


@pytest.fixture
def crew(client: Client) -> list[str]:
    """A worker in each state."""
    now = client.store.clock()
    busy = {"job_id": "abcdef012345", "shard": 7, "tokens_per_second": 12345.6, "model": "org/model"}
    register(client, "busy", device="cuda:2", memory_used=30_000_000_000, memory_total=80_000_000_000, **busy)
    register(client, "idle")
    register(client, "paused", paused="the disk of /results is full")
    register(client, "silent", seen_at=now - 7203)
    register(client, "dead", gone())
    return ["busy", "idle", "paused", "silent", "dead"]


def test_nobody(seqproc: Run) -> None:
    nobody = seqproc("workers")
    assert (nobody.exit_code, nobody.stdout) == (0, "")
    assert "seqproc worker" in nobody.stderr
    assert the_json(seqproc("workers", "--json")) == []


def test_each_state_is_told_apart(seqproc: Run, crew: list[str]) -> None:
    lines = seqproc("workers").stdout.splitlines()
    header = "ID STATE HOST DEVICE MEMORY MODEL QUEUES SHARD TOK/S SEEN NOTE"
    assert lines[0].split() == header.split()
    rows = {line.split()[0]: line for line in lines[1:]}
    assert [row.split()[1] for row in rows.values()] == ["working", "idle", "paused", "silent", "dead"]
    for words in ("cuda:2", "30.0 GB of 80.0 GB", "org/model", "default,big", "abcdef012345/7", "12,346", " s ago"):
        assert words in rows["busy"]
    assert "the disk of /results is full" in rows["paused"]
    assert "2:00:0" in rows["silent"] and "does not answer" in rows["silent"]
    assert "is gone" in rows["dead"]


def test_ids_alone(seqproc: Run, crew: list[str]) -> None:
    assert seqproc("workers", "-q").stdout.split() == crew


def test_json_is_the_row_and_what_follows_from_it(seqproc: Run, client: Client, crew: list[str]) -> None:
    listed = the_json(seqproc("workers", "--json"))
    for worker, shown in zip(client.store.workers(), listed, strict=True):
        state, age = shown.pop("state"), shown.pop("seen_seconds_ago")
        assert shown == json.loads(json.dumps(asdict(worker)))
        assert state == {"busy": "working"}.get(worker.id, worker.id)
        assert age == pytest.approx(7203 if worker.id == "silent" else 30, abs=30)


def test_age_is_told_by_the_databases_clock(seqproc: Run, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    register(client, "w")
    monkeypatch.setattr("time.time", lambda: 4e9)
    (worker,) = the_json(seqproc("workers", "--json"))
    assert worker["seen_seconds_ago"] < 60


@pytest.mark.parametrize("colour", [True, False])
def test_hostile_words_are_disarmed(seqproc: Run, client: Client, colour: bool) -> None:
    hostile = "a\x1b[2J\x07b\u202ec\n[bold red]d"
    register(client, "w", paused=hostile, model=hostile, device=hostile, host=hostile)
    for form in ([], ["--json"]):
        shown = seqproc("workers", *form, env=COLOUR if colour else {"NO_COLOR": "1"}).stdout
        for sequence in ("\x1b[2J", "\x07", "\u202e"):
            assert sequence not in shown
        assert "bold red" in shown
    assert len(seqproc("workers").stdout.splitlines()) == 2
