"""gc against files made by hand: what a row names, or may still come to name, stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobs.errors import JobNotFound, ResultsError
from jobs.gc import Collected, collect
from jobs.manifest import read_manifest, verify
from jobs.paths import JobPaths
from jobs.records import Job
from jobs.settings import Settings
from tests.house import House


def leave(house: House, job: Job, shard: int, attempt: int, *, temporary: bool = False) -> list[Path]:
    """Files as a dead worker leaves them: rows and errors of one attempt."""
    paths = house.paths(job)
    made = [paths.resolve(name) for name in paths.attempt_files(shard, attempt)]
    if temporary:
        made = [path.with_name(f".{path.name}.0123abcd.tmp") for path in made]
    for path in made:
        path.write_text("left behind")
    return made


def age(folder: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def test_files_of_a_shard_that_is_done(house: House) -> None:
    job = house.finish(house.submit(prompts=["p0", "bad", "p2"]).job)
    named = set(house.paths(job).folder.rglob("shard-*"))
    left = [*leave(house, job, 0, 1), *leave(house, job, 1, 1, temporary=True)]
    assert collect(house.store, house.settings, dry_run=True) == Collected(4, 0, 4 * len("left behind"))
    assert all(path.exists() for path in left)
    assert collect(house.store, house.settings) == Collected(4, 0, 4 * len("left behind"))
    assert set(house.paths(job).folder.rglob("*shard-*")) == named
    assert verify(house.paths(job).folder) == []
    assert collect(house.store, house.settings) == Collected(0, 0, 0)


def test_the_open_attempt_is_kept_and_a_past_one_is_not(house: House) -> None:
    job = house.submit(prompts=["p0"]).job
    first = house.claim()
    assert first is not None
    house.store.hand_back(first, "stopped")
    handed_back = leave(house, job, 0, 1)
    assert collect(house.store, house.settings).files == 0, "a shard that waits is not yet past its attempt"
    house.claim()
    current = [*leave(house, job, 0, 2), *leave(house, job, 0, 2, temporary=True)]
    assert collect(house.store, house.settings).files == 2
    assert not any(path.exists() for path in handed_back)
    assert all(path.exists() for path in current), "the worker at work may commit these"


def test_files_of_failed_and_cancelled_shards(house: House) -> None:
    job = house.submit(prompts=["p0", "p1", "p2"]).job
    claim = house.claim()
    assert claim is not None
    left = leave(house, job, 0, 1)
    house.store.fail(claim, "it broke", limit=1)
    house.store.cancel(job.id)
    assert collect(house.store, house.settings).files == 2
    assert not any(path.exists() for path in left)


def test_what_is_not_a_shards_file_is_left_alone(house: House) -> None:
    job = house.finish(house.submit(prompts=["p0"]).job)
    folder = house.paths(job).shards
    strange = [folder / name for name in ("notes.txt", "shard-000000.parquet", "shard-000009-a001-00000000.parquet")]
    for path in strange:
        path.write_text("x")
    assert collect(house.store, house.settings).files == 0
    assert all(path.exists() for path in strange)


@pytest.mark.parametrize(("hours", "stays"), [(23.9, True), (24.1, False)])
def test_a_folder_without_a_row(house: House, hours: float, stays: bool) -> None:
    kept = house.submit(prompts=["p0"]).job
    age(house.paths(kept).folder, 1000)
    orphan = JobPaths(house.settings.results, "0123456789ab")
    orphan.prompts.mkdir(parents=True)
    orphan.segment(0).write_text("four")
    age(orphan.folder, hours)
    assert collect(house.store, house.settings) == (Collected(0, 0, 0) if stays else Collected(0, 1, 4))
    assert orphan.folder.exists() is stays
    assert house.paths(kept).folder.exists()


def test_an_orphan_that_something_is_still_written_to(house: House) -> None:
    house.submit(prompts=["p0"])
    orphan = JobPaths(house.settings.results, "0123456789ab")
    orphan.prompts.mkdir(parents=True)
    orphan.segment(0).write_text("slow stream")
    age(orphan.folder, 48)
    os.utime(orphan.segment(0))
    assert collect(house.store, house.settings).folders == 0


def test_a_deleted_job(house: House) -> None:
    job = house.finish(house.submit(prompts=["p0"]).job)
    house.store.tombstone(job.id)
    assert collect(house.store, house.settings, dry_run=True).folders == 1
    assert house.paths(job).folder.exists()
    assert collect(house.store, house.settings).folders == 1
    assert not house.paths(job).folder.exists()
    assert job.id not in house.store.job_ids()
    with pytest.raises(JobNotFound):
        house.store.job(job.id)


def test_a_deleted_job_whose_files_went_before(house: House) -> None:
    """gc was killed between the files and the row."""
    job = house.finish(house.submit(prompts=["p0"]).job)
    house.store.tombstone(job.id)
    for path in sorted(house.paths(job).folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    house.paths(job).folder.rmdir()
    collect(house.store, house.settings)
    assert job.id not in house.store.job_ids()


def test_a_manifest_that_is_behind_is_written(house: House) -> None:
    job = house.finish(house.submit(prompts=["p0"]).job)
    collect(house.store, house.settings)
    assert read_manifest(house.paths(job).folder)["state"] == "succeeded"


def test_a_root_of_another_database_is_not_touched(house: House, tmp_path: Path) -> None:
    """Seen from the wrong database, every folder would be an orphan."""
    job = house.submit(prompts=["p0"]).job
    age(house.paths(job).folder, 48)
    other = House(
        Settings(home=tmp_path / "other", results_dir=house.settings.results),
        type(house.store).open(Settings(home=tmp_path / "other")),
    )
    try:
        with pytest.raises(ResultsError, match="belongs to another database"):
            collect(other.store, other.settings)
    finally:
        other.store.close()
    assert house.paths(job).folder.exists()


def test_no_results_yet(house: House) -> None:
    assert collect(house.store, house.settings) == Collected(0, 0, 0)
    assert not house.settings.results.exists()
