"""The manifest follows the database, whatever happens while it is written, and tells what was touched afterwards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import manifest as module
from jobs.errors import ResultsError
from jobs.manifest import build, ensure_manifest, read_manifest, verify
from jobs.records import Job
from tests.house import House


@pytest.fixture
def job(house: House) -> Job:
    """Two shards, one of them with a prompt error, its manifest written."""
    done = house.finish(house.submit(prompts=["p0", "p1", "bad"]).job)
    ensure_manifest(house.store, house.settings, done.id)
    return done


def test_it_says_what_there_is(house: House, job: Job) -> None:
    folder = house.paths(job).folder
    data = read_manifest(folder)
    assert (data["id"], data["state"], data["seed"], data["spec"]) == (job.id, "succeeded", 1, job.spec)
    assert data["snapshot"] == {"digest": job.snapshot_digest, "prompts": 3, "segments": 1}
    assert data["counts"]["done_sequences"] == 4 and data["counts"]["prompt_errors"] == 1
    for entry in data["files"]:
        content = (folder / entry["file"]).read_bytes()
        assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert [(e["first_prompt"], e["prompts"], e["prompt_errors"]) for e in data["files"]] == [(0, 2, 0), (2, 1, 1)]
    assert [(a["shard"], a["attempt"], a["outcome"], a["details"]) for a in data["attempts"]] == [
        (0, 1, "done", 0),
        (1, 1, "done", 0),
    ]
    assert data["details"] == [{"device": "hand", "drift": {"tokens": 5}}], "equal details stand once"
    assert data["drift"] == [{"tokens": 5}]
    assert house.store.jobs_with_old_manifest() == []


def test_an_unfinished_shard_is_listed_as_missing(house: House) -> None:
    job = house.submit(prompts=["p0", "p1", "p2"]).job
    house.run_one()
    house.store.cancel(job.id)
    data = build(house.store, job.id)
    assert [(m["shard"], m["state"]) for m in data["missing"]] == [(1, "cancelled")]


def test_a_change_while_writing_is_seen(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job = house.submit(prompts=["p0", "p1", "p2"]).job
    house.run_one()
    house.store.cancel(job.id)
    real, written = module.write_json, []

    def interrupted(path: Path, data: Any) -> None:
        if not written:
            house.store.retry(job.id)
            house.finish(job)
        real(path, data)
        written.append(data["state"])

    monkeypatch.setattr(module, "write_json", interrupted)
    ensure_manifest(house.store, house.settings, job.id)
    assert written == ["cancelled", "succeeded"]
    assert read_manifest(house.paths(job).folder)["state"] == "succeeded"


def test_nothing_is_written_where_nothing_changed(house: House, job: Job) -> None:
    before = house.paths(job).manifest.stat()
    ensure_manifest(house.store, house.settings, job.id)
    assert house.paths(job).manifest.stat().st_ino == before.st_ino


@pytest.mark.parametrize("damage", ["", "{", json.dumps({"format": 1, "revision": -5})])
def test_one_that_was_lost_or_left_behind_is_written_again(house: House, job: Job, damage: str) -> None:
    path = house.paths(job).manifest
    good = path.read_text()
    path.unlink() if not damage else path.write_text(damage)
    ensure_manifest(house.store, house.settings, job.id)
    assert path.read_text() == good


class TestVerify:
    def test_nothing_wrong(self, house: House, job: Job) -> None:
        assert verify(house.paths(job).folder) == []

    def test_every_kind_of_damage_is_named(self, house: House, job: Job) -> None:
        paths = house.paths(job)
        first, second = (paths.resolve(shard.file or "") for shard in house.store.shards(job.id))
        errors = paths.resolve(house.store.shard(job.id, 1).errors_file or "")
        first.write_bytes(first.read_bytes()[:-1] + b"!")
        errors.write_bytes(errors.read_bytes().replace(b"it is bad", b"it is sad"))
        assert verify(paths.folder) == [
            f"{path} is not the file that was committed: its sha256 differs from the manifest's"
            for path in (first, errors)
        ]
        second.unlink()
        assert len(verify(paths.folder)) == 3
        assert "is missing" in verify(paths.folder)[1]

    def test_prompt_errors_of_an_earlier_version_are_counted(self, house: House, job: Job) -> None:
        paths = house.paths(job)
        data = json.loads(paths.manifest.read_text())
        for entry in data["files"]:
            del entry["errors_sha256"]
        paths.manifest.write_text(json.dumps(data))
        assert verify(paths.folder) == []
        errors = paths.resolve(house.store.shard(job.id, 1).errors_file or "")
        errors.write_text("")
        assert verify(paths.folder) == [f"{errors} does not hold the 1 prompt errors that were committed"]

    def test_another_spec_or_other_prompts(self, house: House, job: Job) -> None:
        paths = house.paths(job)
        other = house.submit(prompts=["q0", "q1", "bad"], G=3).job
        paths.spec.write_bytes(house.paths(other).spec.read_bytes())
        paths.segment(0).write_bytes(house.paths(other).segment(0).read_bytes())
        assert [line.split(" ", 1)[1] for line in verify(paths.folder)] == [
            "is not the spec that the job was submitted with",
            "does not hold the prompts that the job was submitted with",
        ]

    def test_no_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(ResultsError, match=r"has no manifest\.json"):
            verify(tmp_path)
