"""Submitting: a row and a whole folder, or neither; the same key twice is one job; the root is the right one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from jobs.errors import IdempotencyConflict, ResultsError, SpecError, StoreError
from jobs.paths import JobPaths
from jobs.records import Job
from jobs.settings import Settings
from jobs.snapshot import digest_of, read_rows
from jobs.spec import JobSpec
from jobs.store import Store
from jobs.store_id import check_root
from jobs.submit import plan, submit
from tests.house import House


def folders(house: House) -> list[str]:
    jobs = house.settings.results / "jobs"
    return sorted(path.name for path in jobs.iterdir()) if jobs.exists() else []


def test_a_job_with_its_folder(house: House) -> None:
    counted: list[int] = []
    rows = [{"prompt": f"p{i}", "note": "x"} for i in range(5)]
    spec = JobSpec.parse({"model": "tiny-arithmetic", "G": 3, "shard_size": 2, "labels": {"run": "7"}})
    done = submit(house.store, house.settings, spec, owner="ann", prompts=rows, progress=counted.append)
    job = house.store.job(done.job.id)
    assert done.created
    assert done.ignored_columns == ["note"]
    assert counted == [1, 2, 3, 4, 5]
    assert (job.owner, job.num_prompts, job.num_sequences, job.num_shards, job.sealed) == ("ann", 5, 15, 3, True)
    paths = house.paths(job)
    assert json.loads(paths.spec.read_text()) == job.spec
    assert JobSpec.parse(job.spec).seed is not None
    assert digest_of(paths, 1) == job.snapshot_digest
    assert [row.prompt for row in read_rows(paths, 0, 4, 5)] == ["p4"]
    assert sorted(path.name for path in paths.folder.iterdir()) == ["errors", "prompts", "shards", "spec.json"]


def test_what_is_wrong_leaves_no_row_and_no_folder(house: House) -> None:
    with pytest.raises(SpecError, match=r"prompts\[1\]"):
        house.submit(prompts=["a", 5])
    with pytest.raises(SpecError, match="stands already"):
        house.submit(prompts=[{"prompt": "a", "custom_id": "x"}] * 2)

    def breaks() -> Iterator[str]:
        yield "a"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        house.submit(prompts=breaks())
    assert house.store.jobs() == []
    assert folders(house) == []


def test_a_plan_counts_and_leaves_nothing(house: House, tmp_path: Path) -> None:
    spec = JobSpec.parse({"model": "tiny-arithmetic", "G": 3, "shard_size": 2, "seed": 4})
    planned = plan(house.store, house.settings, spec, prompts=["a", "b", "c"])
    assert (planned.num_prompts, planned.num_sequences, planned.num_shards) == (3, 9, 2)
    assert planned.spec.prompt_seed == 4
    assert not house.settings.results.exists()
    done = submit(house.store, house.settings, spec, owner="ann", prompts=["a", "b", "c"])
    assert done.job.snapshot_digest == planned.snapshot_digest
    with pytest.raises(SpecError):
        plan(house.store, house.settings, spec, prompts=[{"prompt": "a", "custom_id": "x"}] * 2)


class TestIdempotency:
    def test_the_same_again_is_the_same_job(self, house: House) -> None:
        first = house.submit(prompts=["a"], idempotency_key="k", seed=None)
        again = house.submit(prompts=["a"], idempotency_key="k", seed=None)
        assert (again.created, again.job.id) == (False, first.job.id)
        assert folders(house) == [first.job.id]

    @pytest.mark.parametrize("change", [{"prompts": ["b"]}, {"G": 5}])
    def test_another_job_under_the_key_is_an_error(self, house: House, change: dict[str, Any]) -> None:
        first = house.submit(prompts=["a"], idempotency_key="k")
        with pytest.raises(IdempotencyConflict, match=first.job.id):
            house.submit(**{"prompts": ["a"], "idempotency_key": "k", **change})
        assert folders(house) == [first.job.id]


class TestDatabaseAway:
    """A reply that never comes: the folder goes only if the database says that there is no row."""

    def test_nothing_was_committed(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(self: Store, *args: Any) -> None:
            raise StoreError("the database is away")

        monkeypatch.setattr(Store, "create_job", away)
        with pytest.raises(StoreError):
            house.submit(prompts=["a"])
        assert folders(house) == []

    def test_only_the_reply_was_lost(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Store.create_job

        def lost(self: Store, *args: Any) -> tuple[Job, bool]:
            real(self, *args)
            raise StoreError("the connection broke")

        monkeypatch.setattr(Store, "create_job", lost)
        done = house.submit(prompts=["a"])
        assert done.created
        assert folders(house) == [done.job.id] == [job.id for job in house.store.jobs()]

    def test_nobody_knows(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(self: Store, *args: Any) -> None:
            raise StoreError("the database is away")

        monkeypatch.setattr(Store, "create_job", away)
        monkeypatch.setattr(Store, "job", away)
        with pytest.raises(StoreError):
            house.submit(prompts=["a"])
        assert len(folders(house)) == 1, "left to gc"


class TestResultsRoot:
    def test_not_writable(self, tmp_path: Path, house: House) -> None:
        (tmp_path / "file").write_text("")
        settings = Settings(home=house.settings.home, results_dir=tmp_path / "file" / "results")
        with pytest.raises(ResultsError, match=r"Not a directory; .*SEQPROC_RESULTS_DIR"):
            submit(house.store, settings, JobSpec(model="tiny-arithmetic"), owner="ann", prompts=["a"])
        assert house.store.jobs() == []

    def test_the_root_of_another_database(self, tmp_path: Path, house: House) -> None:
        house.submit(prompts=["a"])
        other = Store.open(Settings(home=tmp_path / "other"))
        try:
            with pytest.raises(ResultsError, match="belongs to another database"):
                submit(other, house.settings, JobSpec(model="tiny-arithmetic"), owner="ann", prompts=["a"])
        finally:
            other.close()

    def test_an_empty_root_where_jobs_exist_is_not_theirs(self, tmp_path: Path, house: House) -> None:
        house.submit(prompts=["a"])
        settings = Settings(home=house.settings.home, results_dir=tmp_path / "unmounted")
        with pytest.raises(ResultsError, match=f"write {house.store.root_id()} into"):
            submit(house.store, settings, JobSpec(model="tiny-arithmetic"), owner="ann", prompts=["a"])
        assert not (tmp_path / "unmounted").exists()

    def test_the_first_root_is_the_only_one(self, tmp_path: Path, house: House) -> None:
        """Also while no job is, and the id that a person is told to write makes another folder the root."""
        first, second = tmp_path / "new" / "root", tmp_path / "forgotten mount"
        check_root(house.store, first)
        check_root(house.store, first)
        assert [path.name for path in first.iterdir()] == ["STORE_ID"]
        with pytest.raises(ResultsError, match=f"{second} holds no STORE_ID.*write {house.store.root_id()} into"):
            check_root(house.store, second)
        assert not second.exists()
        second.mkdir()
        (second / "STORE_ID").write_text(house.store.root_id())
        check_root(house.store, second)

    def test_two_roots_at_once(self, tmp_path: Path, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both were empty when they were looked at; the database takes one."""

        def meanwhile(root: Path) -> None:
            monkeypatch.undo()
            check_root(house.store, tmp_path / "first")
            root.mkdir()

        monkeypatch.setattr("jobs.store_id.make_folder", meanwhile)
        with pytest.raises(ResultsError, match="second is not the one that this database took first"):
            check_root(house.store, tmp_path / "second")
        check_root(house.store, tmp_path / "first")

    def test_a_root_that_was_marked_by_one_who_died_then(
        self, tmp_path: Path, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(self: Store, root_id: str) -> str:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Store, "take_root", killed)
            check_root(house.store, tmp_path / "root")
        check_root(house.store, tmp_path / "root")
        assert house.store.root_id() == (tmp_path / "root" / "STORE_ID").read_text().strip()

    def test_a_root_of_an_earlier_version(self, house: House) -> None:
        """It bears the store's id alone."""
        house.submit(prompts=["a"])
        with house.store.db.transaction() as connection:
            connection.execute(text("UPDATE store SET id = :id"), {"id": house.store.store_id})
        (house.settings.results / "STORE_ID").write_text(house.store.store_id + "\n")
        check_root(house.store, house.settings.results)
        assert house.store.take_root("another/root") == house.store.root_id() == house.store.store_id

    def test_a_folder_of_something_else(self, tmp_path: Path, house: House) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "thesis.tex").write_text("")
        with pytest.raises(ResultsError, match="is not empty and is no results folder"):
            check_root(house.store, tmp_path / "thesis")
        assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]

    def test_a_process_of_another_database_that_was_first_wins(
        self, tmp_path: Path, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def first(target: Path) -> None:
            target.mkdir()
            (target / "STORE_ID").write_text("id-1\n")

        monkeypatch.setattr("jobs.store_id.make_folder", first)
        with pytest.raises(ResultsError, match=r"belongs to another database.*says id-1"):
            check_root(house.store, tmp_path / "root")


def test_paths_of_a_copied_folder(tmp_path: Path) -> None:
    assert JobPaths.at(tmp_path / "copy").spec == tmp_path / "copy" / "spec.json"
