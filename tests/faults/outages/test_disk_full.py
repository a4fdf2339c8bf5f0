"""The disk of the results is full, or of the database: nothing fails but what is asked for just then, in a sentence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.errors import StoreError
from jobs.reaper import Reaper
from tests.faults.outages.disk import SmallDisk, small_disk
from tests.faults.outages.site import PATIENCE, PROMPTS, SUBMIT, Process, Reference, Site, assert_undisturbed

_SUBMIT = ("submit", "-d", "-q", *SUBMIT, "--seed", "1")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as made:
        yield made


def refused(process: Process) -> str:
    """A command that failed with one sentence; that sentence."""
    assert process.wait(PATIENCE) == 1
    (sentence,) = process.said().splitlines()
    assert sentence.startswith("Error: ")
    return sentence


def test_of_the_results_while_a_worker_writes(
    disk: SmallDisk, new_site: Callable[..., Site], reference: Reference
) -> None:
    """The shard is handed back without a failure, the worker pauses, says why, and goes on when there is room."""
    site = new_site(results_dir=disk.path / "results", lease_seconds=30)
    job = site.submit()
    worker = site.worker(step=0.05)
    site.mid_shard(job)
    disk.fill()
    site.until(lambda: any("is full" in (row.paused or "") for row in site.store.workers()))
    record = job.refresh()
    assert record.state == "running"
    assert "is full" in (record.notice or "")
    assert list((disk.path / "results" / "jobs" / job.id).rglob("*.tmp")) == [], "no half file"
    sentence = refused(site.command(*_SUBMIT, "--prompts", "a"))
    assert f"the disk of {site.settings.results}" in sentence
    assert "is full: free some space there" in sentence
    disk.make_room()
    site.until_ended(job)
    site.leave(worker)
    assert "Traceback" not in worker.said(), "neither for the shard nor for a log that cannot be written"
    assert_undisturbed(site, job, reference.of(PROMPTS))


def test_of_the_results_when_the_job_ends(disk: SmallDisk, new_site: Callable[..., Site], reference: Reference) -> None:
    """Its rows fit and its manifest, with that long setting, does not: it is written as soon as there is room."""
    site = new_site(results_dir=disk.path / "results", lease_seconds=30)
    long = {"chat_template_kwargs": {"instructions": "x" * 200_000}}
    job = site.submit(**long)
    worker = site.worker(step=0.05)
    site.mid_shard(job)
    disk.fill(but=128 * 1024)
    site.until_ended(job)
    site.until(lambda: "no manifest" in worker.said())
    disk.make_room()
    site.until(lambda: job.refresh().manifest_revision == job.record.revision)
    site.leave(worker)
    assert_undisturbed(site, job, reference.of(PROMPTS, **long))


def test_of_the_database(disk: SmallDisk, new_site: Callable[..., Site], tmp_path: Path, reference: Reference) -> None:
    """A finished shard waits for its commit; who submits meanwhile hears why not, and leaves nothing behind."""
    site = new_site(home=disk.path / "home", results_dir=tmp_path / "results", lease_seconds=30)
    job = site.submit()
    workers = [site.worker(step=0.05) for _ in range(2)]
    with site.waiting(job):
        site.mid_shard(job)
        disk.fill()
        site.until(lambda: all("cannot grow" in worker.said() for worker in workers))
        sentence = refused(site.command(*_SUBMIT, "--prompts", "a"))
        assert f"{site.store.url} cannot grow" in sentence
        assert [path.name for path in (tmp_path / "results" / "jobs").iterdir()] == [job.id], "no folder without a row"
        disk.make_room()
    site.leave(*workers)
    assert_undisturbed(site, job, reference.of(PROMPTS))
    assert [handle.id for handle in site.client.jobs()] == [job.id]


def test_a_heart_that_finds_no_room_is_not_silent(disk: SmallDisk, new_site: Callable[..., Site]) -> None:
    """Readers see it stand still, and may be the first to write when there is room again."""
    site = new_site(home=disk.path / "home")
    site.submit()
    claim = site.store.claim("w1", queues=["default"], model=None, age_limit=600)
    reaper = Reaper(site.store, lease_seconds=1, limit=3)
    assert reaper.look() == 0
    disk.fill()
    until = time.monotonic() + 2  # of which the heart could not beat
    while time.monotonic() < until:
        with suppress(StoreError):
            assert reaper.look() == 0
        time.sleep(0.05)
    disk.make_room()
    assert reaper.look() == 0
    assert not site.store.beat(claim, sequences=0, tokens=0).lost


def test_while_a_long_submit_writes_its_prompts(disk: SmallDisk, new_site: Callable[..., Site], tmp_path: Path) -> None:
    """It was read from a pipe for a while already: not a byte of it stays, and no row."""
    site = new_site(results_dir=disk.path / "results", lease_seconds=30)
    submit = site.command(*_SUBMIT, "-", stdin=-1)
    folder = site.settings.results / "jobs"
    site.until(lambda: folder.is_dir() and any(folder.glob("*/prompts/*")))
    disk.fill()
    submit.communicate(b'{"prompt": "a"}\n' * 3000, timeout=PATIENCE)
    assert "is full: free some space there" in refused(submit)
    assert list(folder.iterdir()) == []
    assert site.client.jobs() == []
