"""The host is suspended, or a clock is set: time that passed for nobody is held against nobody."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.client import JobHandle
from tests.faults.outages.site import (
    LEASE,
    PATIENCE,
    PROMPTS,
    SUBMIT,
    Reference,
    Site,
    assert_undisturbed,
    outcomes,
    wrong_by,
)
from tests.postgres import Server

HOUR = 3600.0


def latest(site: Site, job: JobHandle) -> float:
    """When the last attempt ended, by the clock that told its time."""
    return max(attempt.ended_at or 0.0 for attempt in site.store.attempts(job.id))


def test_the_host_is_suspended_for_longer_than_the_lease(site: Site, reference: Reference) -> None:
    """Each finds the others silent when it wakes, and itself as well: nobody is reaped."""
    job = site.submit()
    workers = [site.worker(step=0.05) for _ in range(2)]
    site.mid_shard(job)
    everyone = [*workers, site.command("wait", job.id)]
    site.until(lambda: job.refresh().done_shards >= 3)
    for process in everyone:
        process.suspend()
    time.sleep(1.5 * LEASE)  # the fault's own length
    assert not job.refresh().state.ended, "in the middle, or the test shows nothing"
    for process in everyone:
        process.resume()
    site.until_ended(job)
    assert everyone[-1].wait(PATIENCE) == 0
    site.leave(*workers)
    assert outcomes(site, job) == {"done": 6}
    assert_undisturbed(site, job, reference.of(PROMPTS))


def test_the_clocks_of_the_hosts_are_set(site: Site, tmp_path: Path, reference: Reference) -> None:
    """Forwards and backwards by hours, and differently on each host. On SQLite that is the database's clock as well."""
    clocks = [tmp_path / name for name in ("first", "second")]
    for clock in clocks:
        wrong_by(clock, 0)
    job = site.submit()
    workers = [site.worker(step=0.05, clock=clock) for clock in clocks]
    for after, hours in ((1, (6, -6)), (3, (-6, 48))):
        site.mid_shard(job, after)
        for clock, off in zip(clocks, hours, strict=True):
            wrong_by(clock, off * HOUR)
    site.until_ended(job)
    site.leave(*workers)
    if site.store.dialect == "sqlite":
        assert latest(site, job) > time.time() + 24 * HOUR, "the clock did jump"
    assert outcomes(site, job) == {"done": 6}
    assert_undisturbed(site, job, reference.of(PROMPTS))


def test_the_clock_of_the_database_is_set(
    postgres_site: Site, server: Server, database: str, reference: Reference
) -> None:
    server.give_clock(database)
    job = postgres_site.submit()
    workers = [postgres_site.worker(step=0.05) for _ in range(2)]
    with postgres_site.waiting(job):
        for after, hours in ((1, 6), (2, -6), (3, 48)):
            postgres_site.mid_shard(job, after)
            server.set_clock(database, hours * HOUR)
    postgres_site.leave(*workers)
    assert latest(postgres_site, job) > time.time() + 24 * HOUR, "the clock did jump"
    assert outcomes(postgres_site, job) == {"done": 6}
    assert_undisturbed(postgres_site, job, reference.of(PROMPTS))


def test_gc_on_a_host_whose_clock_is_ahead(sqlite_site: Site, tmp_path: Path, reference: Reference) -> None:
    """A folder without a row is a submit at work or one that died: its age is told by the clock that stamped it."""
    site, clock = sqlite_site, tmp_path / "ahead"
    wrong_by(clock, 72 * HOUR)
    submit = site.command("submit", "-d", "-q", "-", *SUBMIT, "--seed", "1", stdin=-1)
    folder = site.settings.results / "jobs"
    site.until(lambda: folder.is_dir() and any(folder.glob("*/prompts/*")))
    assert site.command("gc", clock=clock).wait(PATIENCE) == 0
    words, _ = submit.communicate(b'{"prompt": "a"}\n', timeout=PATIENCE)
    assert submit.returncode == 0, submit.said()
    job = site.client.get(words.decode().strip())
    assert site.worker("--idle-exit").wait(PATIENCE) == 0
    assert_undisturbed(site, job, reference.of(["a"]))
