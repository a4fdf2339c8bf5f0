"""The figures of the whole, against a database whose state is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from jobs.errors import StoreError
from jobs.metrics import StoreCollector
from jobs.processes import this_process
from jobs.store.schema import jobs, workers
from tests.house import House


def scraped(house: House) -> dict[tuple[str, str], float]:
    """Every sample by (name, its label's value or "")."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(house.store))
    text = generate_latest(registry).decode()
    families = text_string_to_metric_families(text)
    return {(s.name, next(iter(s.labels.values()), "")): s.value for family in families for s in family.samples}


def test_an_empty_database_shows_zeros(house: House) -> None:
    found = scraped(house)
    assert all(value == 0 for value in found.values())
    assert {name for name, _ in found} == {
        *("seqproc_shards", "seqproc_jobs", "seqproc_oldest_waiting_seconds"),
        *("seqproc_workers_alive", "seqproc_workers_paused", "seqproc_tokens_per_second", "seqproc_webhooks_waiting"),
    }


def test_queues_jobs_and_shards(house: House) -> None:
    done = house.submit(prompts=["a"] * 2).job
    house.finish(done)
    running = house.submit(prompts=["a"] * 8).job  # 4 shards
    house.run_one()
    house.claim()
    house.submit(prompts=["a"] * 6, queue="slow")
    cancelling = house.submit(prompts=["a"] * 4, queue="third", priority=1).job
    house.store.claim("w2", queues=["third"], model=None, age_limit=600)
    house.store.cancel(cancelling.id)
    found = scraped(house)
    assert {key: found["seqproc_queue_depth", key] for key in ("default", "slow", "third")} == {
        "default": 2,
        "slow": 3,
        "third": 0,
    }
    by_state = {state: found["seqproc_jobs", state] for state in ("queued", "running", "cancelling")}
    assert by_state == {"queued": 1, "running": 1, "cancelling": 1}
    states = ("pending", "running", "done", "failed", "cancelled")
    assert [found["seqproc_shards", state] for state in states] == [5, 2, 1, 0, 1]
    assert house.store.job(running.id).done_shards == 1


def test_the_oldest_that_waits(house: House) -> None:
    waiting, held = house.submit(prompts=["a"]).job, house.submit(prompts=["a"], priority=1).job
    assert house.claim().job.id == held.id  # type: ignore[union-attr]
    with house.store.db.transaction() as connection:
        for job_id, seconds in ((waiting.id, 100.0), (held.id, 5000.0)):
            older = {"waiting_since": jobs.c.waiting_since - seconds}
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(older))
    assert 100 <= scraped(house)["seqproc_oldest_waiting_seconds", ""] < 200


def test_workers_that_are_alive(house: House) -> None:
    for name in ("quick", "paused", "silent"):
        house.store.register_worker(name, this_process(), queues=["default"], device="cpu")
        house.store.worker_beat(name, tokens_per_second=10.5)
    house.store.worker_beat("paused", paused="the disk is full", tokens_per_second=None)
    gone = replace(this_process(), process_started=1.0)
    house.store.register_worker("dead", gone, queues=["default"])
    with house.store.db.transaction() as connection:
        connection.execute(update(workers).where(workers.c.id == "silent").values(seen_at=workers.c.seen_at - 3600))
    found = scraped(house)
    names = ("seqproc_workers_alive", "seqproc_workers_paused", "seqproc_tokens_per_second")
    assert [found[name, ""] for name in names] == [2, 1, 10.5]


def test_no_figures_rather_than_wrong_ones(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise StoreError("the database is away")

    monkeypatch.setattr(house.store, "load", away)
    with pytest.raises(StoreError, match="away"):
        scraped(house)
