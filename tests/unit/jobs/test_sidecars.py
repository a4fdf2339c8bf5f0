"""Rewards of a job that is there already: files beside the shards, seen by every reader, and never a shard touched."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pandas
import pytest
from sqlalchemy import update

from jobs.child import environment
from jobs.client import Client, JobHandle
from jobs.errors import JobNotFound, NotFinished, ResultsError, UsageError, WrongState
from jobs.export import export
from jobs.files import sha256_of
from jobs.gc import collect
from jobs.manifest import read_manifest, verify
from jobs.results import JobResults
from jobs.sidecars import REWARD, Measured, keep_sidecar
from jobs.store.schema import shards
from tests.house import House
from tests.unit.jobs.test_gc import age

DAY = 25  # hours, and one more than a file without a row is kept


def length(row: dict[str, Any]) -> float | None:
    """None for one of them."""
    return None if (row["prompt_index"], row["sample_index"]) == (1, 0) else len(row["response"])


def expected(house: House, handle: JobHandle) -> list[float | None]:
    return [length(row) for row in house.results(handle.record).rows()]


@pytest.fixture
def job(house: House) -> JobHandle:
    """Five prompts in three shards, the last of which has no sequence at all."""
    made = house.finish(house.submit(prompts=["p0", "p1", "p2", "p3", "bad"]).job)
    return Client(house.settings).get(made.id)


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "sidecars"]
    return {str(f): (sha256_of(f), f.stat().st_mtime_ns) for f in files if f.name != "manifest.json"}


def test_every_reader_sees_it(house: House, job: JobHandle, tmp_path: Path) -> None:
    before, plain = state_of(house.paths(job.record).folder), list(job.rows())
    made = job.reward(length)
    values = expected(house, job)
    assert None in values and (made.sequences, made.unjudged, made.shards, made.skipped) == (8, 1, 3, 0)
    known = [value for value in values if value is not None]
    assert (made.mean, made.reasons) == (sum(known) / len(known), {"it gave no verdict": 1})
    rows = list(job.rows())
    assert [row.pop("reward_length") for row in rows] == values
    assert rows == plain
    column = job.to_pandas()["reward_length"]
    assert column.dtype == "float64" and [None if math.isnan(v) else v for v in column] == values
    assert job.dataset()["reward_length"][:] == values
    arrays = list(job.results.rows(arrays=True))
    assert [row["reward_length"] for row in arrays] == values
    sequences, _ = job.to_batched()
    assert sequences.sequences.shape[0] == 4
    for form in ("parquet", "jsonl"):
        export(job.results, tmp_path / form, form)  # type: ignore[arg-type]
    assert pandas.read_parquet(tmp_path / "parquet/sequences.parquet")["reward_length"].isna().sum() == 1
    lines = (tmp_path / "jsonl/sequences.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward_length"] for line in lines] == values
    for folder in (tmp_path / "parquet", house.paths(job.record).folder):
        away = JobResults.from_folder(folder)
        assert [row["reward_length"] for row in away.rows()] == away.dataset()["reward_length"][:] == values
        assert list(away.to_pandas().columns) == list(job.to_pandas().columns)
        assert verify(folder) == []
    assert state_of(house.paths(job.record).folder) == before, "no shard is ever edited"


def test_what_has_it_is_skipped_and_again_replaces_it(house: House, job: JobHandle) -> None:
    job.reward("tag_format")
    files = {entry["file"] for entry in job.manifest()["sidecars"]}
    again = job.reward("tag_format")
    assert (again.shards, again.skipped, again.sequences, again.mean) == (0, 3, 8, 0.0)
    assert {entry["file"] for entry in job.manifest()["sidecars"]} == files
    assert job.reward("tag_format", again=True).shards == 3
    anew = {entry["file"] for entry in job.manifest()["sidecars"]}
    assert len(anew) == 3 and not anew & files
    folder = house.paths(job.record).folder
    assert collect(house.store, house.settings).files == 0, "who listed them a moment ago still reads them"
    age(folder, DAY)
    assert collect(house.store, house.settings).files == 3
    assert {f"sidecars/{path.name}" for path in (folder / "sidecars").iterdir()} == anew
    assert verify(folder) == []
    assert job.reward(length).shards == job.reward(length).shards == 3, "a function may be another than it was"


def test_only_what_there_is(house: House) -> None:
    job = Client(house.settings).get(house.submit(prompts=["p0", "p1", "p2"]).job.id)
    with pytest.raises(NotFinished, match="ask for what there is"):
        job.reward("tag_format")
    house.run_one()
    assert job.reward(length, partial=True).shards == 1
    house.run_one()
    values = [row["reward_length"] for row in job.rows()]
    assert values[-2:] == [None, None] and values[0] is not None, "the second shard has not been judged"
    made = job.reward(length, again=False)
    assert (made.shards, made.skipped) == (1, 1)
    assert [row["reward_length"] for row in job.rows()] == expected(house, job)


def test_a_sidecar_of_another_file_is_not_read(house: House, job: JobHandle) -> None:
    job.reward(length)
    with house.store.db.transaction() as connection:
        this = (shards.c.job_id == job.id, shards.c.index == 0)
        connection.execute(update(shards).where(*this).values(sha256="f" * 64))
    assert [row["reward_length"] for row in job.rows()][:4] == [None] * 4
    assert [row["reward_length"] for row in job.rows()][4:] == expected(house, job)[4:]
    measured = Measured(job.id, REWARD, "late", 0, house.results(job.record).files()[1].sha256, [0.0] * 4)
    source = house.results(job.record).files()[0].path
    with pytest.raises(WrongState, match=f"shard 0 of job {job.id} has no file, or another than the one"):
        keep_sidecar(house.store, house.settings, source, measured)
    assert not any("late" in path.name for path in house.paths(job.record).sidecars.iterdir())


def test_retry_keeps_what_was_judged(house: House) -> None:
    record = house.submit(prompts=["p0", "p1", "p2"]).job
    job = Client(house.settings).get(record.id)
    house.run_one()
    claim = house.claim()
    assert claim is not None
    house.store.fail(claim, "it broke", limit=1)
    job.reward(length)
    job.retry()
    house.finish(record)
    values = [row["reward_length"] for row in job.rows()]
    assert values == [*expected(house, job)[:4], None, None]
    assert job.reward(length, again=False).shards == 1
    assert verify(house.paths(record).folder) == []


def test_a_deleted_job_does_not_come_back(house: House, job: JobHandle) -> None:
    files = house.results(job.record).files()
    source = Path(str(files[0].path) + ".kept")
    source.write_bytes(files[0].path.read_bytes())
    kept = house.settings.results / "kept.parquet"
    source.rename(kept)
    job.delete()
    with pytest.raises((JobNotFound, ResultsError)):
        keep_sidecar(house.store, house.settings, kept, Measured(job.id, REWARD, "a", 0, files[0].sha256, [0.0] * 4))
    assert not house.paths(job.record).folder.exists()


def test_one_value_for_each_sequence(house: House, job: JobHandle) -> None:
    file = house.results(job.record).files()[0]
    with pytest.raises(UsageError, match="shard 0 has 4 sequences, and 3 values came; give one for each"):
        keep_sidecar(house.store, house.settings, file.path, Measured(job.id, REWARD, "a", 0, file.sha256, [0.0] * 3))


def test_damage_is_found(house: House, job: JobHandle) -> None:
    job.reward(length)
    folder = house.paths(job.record).folder
    entry = read_manifest(folder)["sidecars"][0]
    (folder / entry["file"]).write_bytes(b"PAR1")
    [problem] = verify(folder)
    assert entry["file"] in problem and "sha256 differs" in problem
    with pytest.raises(ResultsError, match="may be damaged"):
        list(job.rows())
    (folder / entry["file"]).unlink()
    [problem] = verify(folder)
    assert "is missing" in problem


def test_killed_between_the_file_and_its_row(house: House, job: JobHandle) -> None:
    """The file is nobody's: no reader sees it, gc takes it after a day, and judging again goes on."""
    script = textwrap.dedent(f"""
        import os, signal
        from jobs import Client
        from jobs.store import Store

        kept = Store.put_sidecar

        def put(self, sidecar):
            if sidecar.shard == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return kept(self, sidecar)

        Store.put_sidecar = put
        Client().get({job.id!r}).reward("tag_format")
    """)
    killed = subprocess.run([sys.executable, "-c", script], env=environment(house.settings))
    assert killed.returncode == -signal.SIGKILL
    folder = house.paths(job.record).sidecars
    assert len(list(folder.iterdir())) == 2
    assert [row["reward_tag_format"] for row in job.rows()] == [0.0] * 4 + [None] * 4
    assert collect(house.store, house.settings).files == 0
    age(folder, DAY)
    assert collect(house.store, house.settings).files == 1
    made = job.reward("tag_format")
    assert (made.shards, made.skipped) == (2, 1)
    assert verify(house.paths(job.record).folder) == []


def test_gc_leaves_what_is_strange(house: House, job: JobHandle) -> None:
    job.reward(length)
    folder = house.paths(job.record).sidecars
    (folder / "notes.txt").write_text("mine")
    (folder / ".reward-a-shard-000000-01234567.parquet.0123abcd.tmp").write_text("left behind")
    age(house.paths(job.record).folder, DAY)
    assert collect(house.store, house.settings, dry_run=True).files == 1
    assert collect(house.store, house.settings).files == 1
    assert (folder / "notes.txt").exists() and len(list(folder.iterdir())) == 4
    os.utime(folder, (time.time(), time.time()))
    job.delete()
    assert not folder.exists() and house.store.sidecar_files(job.id) == set()
