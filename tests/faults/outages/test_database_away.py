"""The database goes away, stands still or is locked: whoever needs it waits, and nobody is taken for dead meanwhile."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from jobs.client import JobHandle
from jobs.errors import StoreError
from jobs.reaper import Reaper
from jobs.store.database import Database
from tests.faults.outages.proxy import Proxy
from tests.faults.outages.site import (
    LEASE,
    PATIENCE,
    PROMPTS,
    SUBMIT,
    Reference,
    Site,
    assert_undisturbed,
    locked,
    outcomes,
)
from tests.postgres import Server


def lasted(job: JobHandle) -> float:
    """Seconds from the first claim to the end: the fault fell in between, or the test shows nothing."""
    record = job.refresh()
    return (record.ended_at or 0.0) - (record.started_at or 0.0)


def test_restarted_in_the_middle_of_a_shard(postgres_site: Site, server: Server, reference: Reference) -> None:
    job = postgres_site.submit()
    worker = postgres_site.worker(step=0.1)
    with postgres_site.waiting(job):
        postgres_site.mid_shard(job)
        with server.away():
            pass
        assert not job.refresh().state.ended, "in the middle, or the test shows nothing"
    postgres_site.leave(worker)
    assert_undisturbed(postgres_site, job, reference.of(PROMPTS))


def test_away_for_longer_than_a_lease(postgres_site: Site, server: Server, reference: Reference) -> None:
    """Shards that were finished meanwhile wait for their commit; those in the middle are not made anew."""
    job = postgres_site.submit()
    workers = [postgres_site.worker(step=0.1) for _ in range(2)]
    with postgres_site.waiting(job):
        postgres_site.mid_shard(job)
        with server.away():
            time.sleep(LEASE + 1)  # the fault's own length
            postgres_site.until(lambda: all("does not answer" in worker.said() for worker in workers))
    postgres_site.leave(*workers)
    assert lasted(job) > LEASE
    assert_undisturbed(postgres_site, job, reference.of(PROMPTS))


def test_standing_still_for_longer_than_a_lease(postgres_site: Site, server: Server, reference: Reference) -> None:
    job = postgres_site.submit()
    workers = [postgres_site.worker(step=0.05) for _ in range(2)]
    with postgres_site.waiting(job):
        postgres_site.mid_shard(job)
        with server.paused():
            time.sleep(LEASE + 1)
    postgres_site.leave(*workers)
    assert lasted(job) > LEASE
    assert outcomes(postgres_site, job) == {"done": 6}
    assert_undisturbed(postgres_site, job, reference.of(PROMPTS))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops a socket's packets on demand")
def test_a_host_that_vanishes(
    postgres_site: Site, server: Server, database: str, proxy: Proxy, reference: Reference
) -> None:
    """No reset, no end of file: left to itself TCP would send again for a quarter of an hour, or wait for ever."""
    soon = "tcp_user_timeout=1000&keepalives_idle=1&keepalives_interval=1"
    url = f"{server.url(database, proxy.port)}?sslmode=disable&gssencmode=disable&{soon}"
    job = postgres_site.submit()
    worker = postgres_site.worker(
        step=0.1, settings=postgres_site.settings.model_copy(update={"database_url": url, "lease_seconds": 30})
    )
    postgres_site.mid_shard(job)
    assert proxy.vanish() > 0
    postgres_site.until_ended(job)
    postgres_site.leave(worker)
    assert "does not answer" in worker.said()
    assert_undisturbed(postgres_site, job, reference.of(PROMPTS))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops a socket's packets on demand")
def test_a_host_that_vanishes_while_it_owes_an_answer(server: Server, proxy: Proxy) -> None:
    """Nothing is on its way that could be missed: only keepalives tell."""
    statement, active = "SELECT pg_sleep(60)", "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query = "
    soon = "tcp_user_timeout=1000&keepalives_idle=1&keepalives_interval=1"
    asking, watching = Database(f"{server.url(port=proxy.port)}?sslmode=disable&{soon}"), Database(server.url())

    def ask() -> None:
        with asking.reading() as connection:
            connection.exec_driver_sql(statement)

    def asked() -> bool:
        with watching.reading() as connection:
            return connection.exec_driver_sql(f"{active} '{statement}'").first() is not None

    with ThreadPoolExecutor(1) as pool, closing(proxy):  # which ends what nobody else ended
        answer = pool.submit(ask)
        while not asked():
            time.sleep(0.02)
        assert proxy.vanish() == 1
        with pytest.raises(StoreError, match="does not answer"):
            answer.result(PATIENCE)
    asking.close()
    watching.close()


def test_locked_for_ten_seconds_during_work_and_submit(sqlite_site: Site, reference: Reference) -> None:
    """Readers go on meanwhile, and see hearts stand still that only cannot write."""
    site, file = sqlite_site, sqlite_site.settings.home / "seqproc.db"
    job = site.submit()
    workers = [site.worker(step=0.05) for _ in range(2)]
    with site.waiting(job):
        site.mid_shard(job)
        with locked(file):
            began = time.monotonic()
            submit = site.command("submit", "-d", "-q", *SUBMIT, "--seed", "1", "--prompts", "a")
            time.sleep(10 - (time.monotonic() - began))
            assert submit.poll() is None, "it waits"
            done = job.refresh().done_shards
            assert done < 6
    assert submit.wait(PATIENCE) == 0, submit.said()
    assert submit.stdout is not None
    other = site.client.get(submit.stdout.read().decode().strip())
    site.until_ended(other)
    site.leave(*workers)
    assert outcomes(site, job) == {"done": 6}
    assert_undisturbed(site, job, reference.of(PROMPTS))
    assert_undisturbed(site, other, reference.of(["a"]))


def test_a_heart_that_cannot_write_is_not_silent(sqlite_site: Site) -> None:
    """A reaper that only reads goes on while SQLite is locked, and may be the first to write when it is free again."""
    site = sqlite_site
    job = site.submit()
    claim = site.store.claim("w1", queues=["default"], model=None, age_limit=600)
    assert claim is not None
    reaper = Reaper(site.store, lease_seconds=1, limit=3)

    def look_until_it_had_to_wait() -> int:
        while True:
            began = time.monotonic()
            reaped = reaper.look()
            if time.monotonic() - began > 1:
                return reaped
            time.sleep(0.05)

    with ThreadPoolExecutor(1) as pool:
        with locked(site.settings.home / "seqproc.db"):
            looking = pool.submit(look_until_it_had_to_wait)
            time.sleep(2.5)  # of which the heart could not beat
        assert looking.result(30) == 0
    assert not site.store.beat(claim, sequences=0, tokens=0).lost
    assert outcomes(site, job) == {None: 1}
