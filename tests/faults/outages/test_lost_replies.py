"""The connection breaks around a COMMIT: whoever sent it finds out whether it happened, and makes nothing twice."""

from __future__ import annotations

import random

import pytest

from jobs import Client
from jobs.errors import StoreError
from jobs.settings import Settings
from tests.faults.outages.proxy import CLAIMS_A_SHARD, COMMITS_A_SHARD, MAKES_A_JOB, Proxy, Where
from tests.faults.outages.site import (
    PATIENCE,
    PROMPTS,
    SPEC,
    Reference,
    Site,
    assert_undisturbed,
    outcomes,
)
from tests.postgres import Server

both = pytest.mark.parametrize("where", ["before", "after"])


@pytest.fixture
def cut_off(postgres_site: Site, proxy: Proxy, server: Server, database: str) -> Settings:
    """The site's settings with the proxy in between, and a lease that no loaded machine uses up."""
    url = f"{server.url(database, proxy.port)}?sslmode=disable&gssencmode=disable"
    return postgres_site.settings.model_copy(update={"database_url": url, "lease_seconds": 30})


@both
def test_of_a_finished_shard(
    where: Where, postgres_site: Site, proxy: Proxy, cut_off: Settings, reference: Reference
) -> None:
    job = postgres_site.submit()
    proxy.cut(where, COMMITS_A_SHARD, times=2)
    worker = postgres_site.worker(settings=cut_off)
    postgres_site.until_ended(job)
    postgres_site.leave(worker)
    assert proxy.cuts == 2
    assert outcomes(postgres_site, job) == {"done": 6}, "nothing was made twice"
    assert_undisturbed(postgres_site, job, reference.of(PROMPTS))


@both
def test_of_a_claim(where: Where, postgres_site: Site, proxy: Proxy, cut_off: Settings, reference: Reference) -> None:
    """One that happened is a shard that nobody runs: it is handed back when the database answers again."""
    job = postgres_site.submit()
    proxy.cut(where, CLAIMS_A_SHARD, times=2)
    worker = postgres_site.worker(settings=cut_off)
    postgres_site.until_ended(job)
    postgres_site.leave(worker)
    assert proxy.cuts == 2
    assert outcomes(postgres_site, job) == {"done": 6} | ({"handed back": 2} if where == "after" else {})
    assert_undisturbed(postgres_site, job, reference.of(PROMPTS))


def test_of_a_submit_that_happened(postgres_site: Site, proxy: Proxy, cut_off: Settings, reference: Reference) -> None:
    proxy.cut("after", MAKES_A_JOB, times=1)
    with Client(cut_off) as client:
        job = postgres_site.client.get(client.submit(prompts=PROMPTS, **SPEC).id)
    assert proxy.cuts == 1
    assert postgres_site.worker("--idle-exit").wait(PATIENCE) == 0
    assert_undisturbed(postgres_site, job, reference.of(PROMPTS))


def test_of_a_submit_that_did_not_happen(postgres_site: Site, proxy: Proxy, cut_off: Settings) -> None:
    proxy.cut("before", MAKES_A_JOB, times=1)
    with Client(cut_off) as client, pytest.raises(StoreError, match="does not answer"):
        client.submit(prompts=PROMPTS, **SPEC)
    assert proxy.cuts == 1
    assert postgres_site.client.jobs() == []
    assert list((postgres_site.settings.results / "jobs").iterdir()) == [], "nothing half-written"


def test_of_any_transaction(postgres_site: Site, proxy: Proxy, cut_off: Settings, reference: Reference) -> None:
    """Heartbeats, hand-backs, manifests, everything: one COMMIT in six is lost, either way, under two workers."""
    chance = random.Random(4)
    workers = [postgres_site.worker(settings=cut_off) for _ in range(2)]
    postgres_site.until(lambda: len(postgres_site.store.workers()) == 2)  # who finds no database does not start
    proxy.choose_by(lambda _: chance.choice(("before", "after")) if chance.random() < 1 / 6 else None)
    jobs = [postgres_site.submit(seed=seed) for seed in (1, 2, 3, 4)]
    postgres_site.until_ended(*jobs)
    proxy.choose_by(lambda _: None)
    postgres_site.leave(*workers)
    assert proxy.cuts > 10
    for seed, job in enumerate(jobs, start=1):
        assert_undisturbed(postgres_site, job, reference.of(PROMPTS, seed=seed))
