"""The schema: made once however many come for it, the same as the tables say, and never another's."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, inspect, text
from sqlalchemy.engine import Inspector

from jobs.errors import StoreError
from jobs.settings import Settings
from jobs.store import Store, migrate
from jobs.store.database import Database
from jobs.store.schema import REVISION, metadata
from tests.contract.helpers import run_out, submit
from tests.contract.processes import open_together

A_JOB_OF_0001 = """
    INSERT INTO jobs (
        id, owner, kind, model, queue, priority, spec, spec_digest, snapshot_digest, state, sealed, num_prompts,
        num_sequences, num_shards, pending_shards, running_shards, done_shards, failed_shards, cancelled_shards,
        done_sequences, done_tokens, prompt_errors, revision, manifest_revision, created_at, waiting_since
    ) VALUES (
        'old', 'ada', 'generate', 'org/model', 'default', 0, :spec, '', '', 'queued', :no, 0,
        0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, -1, 5.0, 5.0
    )
"""


def test_the_first_migration(fresh: Settings) -> None:
    assert f"from schema (none) to {REVISION}" in Store.migrate(fresh)
    assert f"already has schema {REVISION}" in Store.migrate(fresh)
    store = Store.open(fresh, migrate=False)
    assert store.schema_version() == (REVISION, REVISION)
    assert len(store.store_id) == 36
    assert Store.open(fresh).store_id == store.store_id
    submit(store, 2)
    assert run_out(store) == 2


def test_the_migrated_schema_is_what_the_tables_say(store: Store) -> None:
    with store.db.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection, {"compare_type": True}), metadata) == []
        inspector = inspect(connection)
        for table in metadata.sorted_tables:
            constraints = table.constraints.union(*(column.constraints for column in table.columns))
            named = {str(c.name) for c in constraints if isinstance(c, CheckConstraint)}
            assert {c["name"] for c in inspector.get_check_constraints(table.name)} == named, table.name


def test_the_newest_migration_is_the_revision() -> None:
    config = Config()
    config.set_main_option("script_location", "jobs:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_every_process_has_its_own_store_id(tmp_path: Path) -> None:
    ids = {Store.open(Settings(home=tmp_path / name)).store_id for name in ("a", "b")}
    assert len(ids) == 2


def test_four_processes_at_once(fresh: Settings) -> None:
    spawn = multiprocessing.get_context("spawn")
    start, opened = spawn.Barrier(4), spawn.Queue()
    openers = [spawn.Process(target=open_together, args=(fresh, start, opened)) for _ in range(4)]
    for process in openers:
        process.start()
    ids = [opened.get(timeout=120) for _ in openers]
    for process in openers:
        process.join(30)
    assert set(ids) == {Store.open(fresh).store_id}


def test_migrated_between_two_looks(make_postgres: Callable[[], Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process migrates while this one looks is no other program's. SQLite looks at one snapshot."""
    fresh, really, looks = make_postgres(), Inspector.has_table, []

    def has_table(self: Inspector, name: str, *args: Any, **options: Any) -> bool:
        found = really(self, name, *args, **options)
        looks.append(name)
        if len(looks) == 1:
            Store.migrate(fresh)
        return found

    monkeypatch.setattr(Inspector, "has_table", has_table)
    db = Database(fresh.database)
    assert migrate.schema_version(db) == REVISION
    assert {"jobs", "alembic_version"} <= set(looks)
    db.close()


def test_a_newer_schema_is_refused(store: Store, settings: Settings) -> None:
    with store.db.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    for attempt in (Store.open, Store.migrate):
        with pytest.raises(StoreError, match=rf"schema 0999, newer than {REVISION}.*upgrade sequence-processor"):
            attempt(settings)
    assert store.schema_version() == ("0999", REVISION)


def test_a_schema_that_is_not_there_is_named(fresh: Settings, dialect: str) -> None:
    if dialect == "sqlite":
        fresh.home.mkdir()
    with pytest.raises(StoreError, match=r"has no schema yet.*seqproc db upgrade"):
        Store.open(fresh, migrate=False)
    if dialect == "postgresql":
        with pytest.raises(StoreError, match="seqproc db upgrade"):
            Store.open(fresh)


def test_an_older_schema(fresh: Settings, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0001 with a job in it, opened by a version that speaks a newer one."""
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "REVISION", "0001")
        patch.setattr(migrate, "_upgrade", partial(migrate._upgrade, revision="0001"))
        Store.migrate(fresh)
    db = Database(fresh.database)
    with db.transaction() as connection:
        connection.execute(text(A_JOB_OF_0001), {"spec": json.dumps({"labels": {"run": "7"}}), "no": False})
        connection.execute(text("INSERT INTO job_labels VALUES ('old', 'run', '7')"))
    db.close()
    if dialect == "postgresql":
        with pytest.raises(StoreError, match=f"has schema 0001, and this version needs {REVISION}; run `seqproc db up"):
            Store.open(fresh)
        Store.migrate(fresh)
    store = Store.open(fresh)
    assert store.schema_version()[0] == REVISION
    old = store.job("old")
    assert (old.owner, old.num_shards, old.created_at, old.ttl) == ("ada", 0, 5.0, None)
    submit(store, 1, labels={"run": "7"}, id="new")
    assert [job.id for job in store.jobs(label=("run", "7"))] == ["new", "old"]
    assert store.jobs(label=("run", "7"), before=(5.0, "old\U0010ffff")) == [old]
    store.close()
    if dialect == "sqlite":
        copy = sqlite3.connect(fresh.home / "seqproc.db.schema-0001")
        assert copy.execute("SELECT id FROM jobs").fetchall() == [("old",)]
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        copy.close()


def test_a_migration_that_fails_leaves_the_old_schema(fresh: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    really = migrate._upgrade

    def fail_at_the_end(connection: Any) -> None:
        really(connection)
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(migrate, "_upgrade", fail_at_the_end)
        with pytest.raises(RuntimeError, match="power cut"):
            Store.migrate(fresh)
    db = Database(fresh.database)
    with db.reading() as connection:
        assert inspect(connection).get_table_names() == []
    db.close()
    Store.migrate(fresh)


def test_another_programs_database_is_left_alone(fresh: Settings) -> None:
    fresh.home.mkdir(exist_ok=True)
    db = Database(fresh.database)
    with db.transaction() as connection:
        connection.execute(text("CREATE TABLE jobs (id INTEGER)"))
    with pytest.raises(StoreError, match="another program"):
        Store.migrate(fresh)
    db.close()


def test_shards_that_were_done_before_0005_are_in_order(fresh: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time at which they ended, and where that is the same by their number."""
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "REVISION", "0004")
        patch.setattr(migrate, "_upgrade", partial(migrate._upgrade, revision="0004"))
        Store.migrate(fresh)
    db = Database(fresh.database)
    zeros = "attempt, failures, beat, running_sequences, running_tokens, bytes, sequences, tokens, prompt_errors"
    with db.transaction() as connection:
        connection.execute(text(A_JOB_OF_0001), {"spec": "{}", "no": False})
        for index, ended in enumerate((7.0, 5.0, None, 7.0, 6.0)):
            state, file = ("pending", None) if ended is None else ("done", f"shards/{index}")
            connection.execute(
                text(
                    f'INSERT INTO shards (job_id, "index", segment, start, stop, first_prompt, state, file, ended_at, '
                    f"{zeros}) VALUES ('old', :index, 0, 0, 1, 0, :state, :file, :ended, 0, 0, 0, 0, 0, 0, 0, 0, 0)"
                ),
                {"index": index, "state": state, "file": file, "ended": ended},
            )
    db.close()
    Store.migrate(fresh)
    store = Store.open(fresh)
    assert [shard.done_order for shard in store.shards("old")] == [3, 1, None, 4, 2]
    store.close()
