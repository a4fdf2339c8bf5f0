"""Real worker processes on a real database, to be killed, stopped, raced and lied to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from sqlalchemy import text

from jobs import Client
from jobs.child import environment
from jobs.client import JobHandle
from jobs.gc import collect
from jobs.manifest import build, read_manifest, verify
from jobs.settings import Settings
from jobs.snapshot import SnapshotRow
from tests.faults import puppet
from tests.rows import made_row

SPEC: dict[str, Any] = {
    "model": "tiny-arithmetic",
    "dataset": "arithmetic_r1_template",
    "split": "test",
    "num_prompts": 24,
    "G": 4,
    "seed": 7,
    "max_new_tokens": 96,
    "shard_size": 4,
}

on_both = pytest.mark.parametrize("lab", ["sqlite", "postgresql"], indirect=True)


_from_warm = multiprocessing.get_context("forkserver")
_from_warm.set_forkserver_preload(["pytest", puppet.__name__])


class Process(subprocess.Popen[bytes]):
    """A command of `seqproc`, as people start it."""

    def __init__(self, command: Sequence[str], settings: Settings, folder: Path) -> None:
        self.folder = folder
        with (folder / "stderr").open("wb") as stderr:
            super().__init__(command, env=environment(settings), stdout=subprocess.DEVNULL, stderr=stderr)

    @property
    def words(self) -> str:
        """What it said on stderr."""
        return (self.folder / "stderr").read_text(errors="replace")


class Puppet:
    """A process with faults planted in it. Where one is a `wait`, it tells when it waits and goes on when told."""

    def __init__(self, faults: Sequence[str], command: Sequence[str], settings: Settings, folder: Path) -> None:
        self.folder = folder
        arguments = (folder, faults, command, environment(settings))
        self._process = _from_warm.Process(target=puppet.forked, args=arguments)
        self._process.start()
        self.pid = self._process.pid or 0
        self.kill, self.terminate = self._process.kill, self._process.terminate

    words = Process.words

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code, negative for a signal; None if the seconds passed."""
        self._process.join(seconds)
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def waits(self) -> bool:
        return (self.folder / "waiting").exists()

    def go_on(self) -> None:
        (self.folder / "go").touch()


class Lab:
    """One database, one results folder, and the processes that a test starts on them."""

    def __init__(self, home: Path, **settings: Any) -> None:
        fast = {"lease_seconds": 3, "heartbeat_seconds": 0.05, "poll_seconds": 0.1}
        self.settings = Settings(home=home, **fast | settings)
        self.client = Client(self.settings)
        self.workers: list[Process | Puppet] = []

    def start_worker(self, *flags: str) -> Process:
        command = [sys.executable, "-P", "-m", "jobs", "worker", *flags]
        worker = Process(command, self.settings, self._new_folder())
        self.workers.append(worker)
        return worker

    def puppet(self, *faults: str, command: Sequence[str] = ("worker", "--idle-exit"), **settings: Any) -> Puppet:
        """A command with these faults planted in it (see `puppet.py`), by default a worker that leaves when idle.

        `settings` are what it has different from the lab.
        """
        worker = Puppet(faults, command, self.settings.model_copy(update=settings), self._new_folder())
        self.workers.append(worker)
        return worker

    def _new_folder(self) -> Path:
        folder = self.settings.home / "processes" / str(len(self.workers))
        folder.mkdir(parents=True)
        return folder

    def submit(self, *prompts: str, **fields: Any) -> JobHandle:
        """A job for the scripted engine, by default of six shards."""
        spec = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2} | fields
        return self.client.submit(prompts=list(prompts) or [f"p{i}" for i in range(12)], **spec)

    def until(self, what: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for a condition; fails with the workers' last words when it never comes."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                ends = [(process.poll(), process.words[-300:]) for process in self.workers]
                pytest.fail(f"waited {seconds} s in vain; workers ended with {ends}")
            time.sleep(0.02)

    def mid_shard(self, job: JobHandle, after_shards: int = 1) -> None:
        """Wait until some shards are done and another one is in the middle of generating."""
        self.until(
            lambda: job.refresh().done_shards >= after_shards and self.client.store.running_progress(job.id)[1] > 0
        )

    def freeze(self, worker: Process | Puppet) -> None:
        """SIGSTOP, but not inside a transaction, whose locks would stay with the frozen process."""
        for _ in range(200):
            worker.send_signal(signal.SIGSTOP)
            self.until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
            if self._nobody_writes():
                return
            worker.send_signal(signal.SIGCONT)
            time.sleep(0.01)
        pytest.fail("the worker was always found inside a transaction")

    def _nobody_writes(self) -> bool:
        if self.client.store.dialect == "postgresql":
            busy = text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'"
            )
            with self.client.store.db.reading() as connection:
                return connection.scalar(busy) == 0
        with closing(sqlite3.connect(self.settings.home / "seqproc.db", timeout=0.1)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            return True

    def files(self, job: JobHandle) -> set[str]:
        """What lies in the job's folders of attempts, whole or half-written."""
        folder = self.settings.results / "jobs" / job.id
        return {f"{name}/{path.name}" for name in ("shards", "errors") for path in (folder / name).iterdir()}

    def outcomes(self, job: JobHandle) -> list[str | None]:
        """How each attempt at the job's shards ended, by shard and attempt."""
        return [attempt.outcome for attempt in self.client.store.attempts(job.id)]

    def close(self) -> None:
        for process in self.workers:
            process.kill()
            process.wait()
        self.client.close()


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """A lab on SQLite, or on what `on_both` asks for."""
    settings = {}
    if getattr(request, "param", "sqlite") == "postgresql":
        template = request.getfixturevalue("migrated_template")
        settings["database_url"] = request.getfixturevalue("make_postgres")(template).database_url
    laboratory = Lab(tmp_path / "home", **settings)
    yield laboratory
    laboratory.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of SPEC from one worker that nobody disturbed."""
    laboratory = Lab(tmp_path_factory.mktemp("undisturbed") / "home")
    try:
        job = laboratory.client.submit(**SPEC)
        job.wait()
        return list(job.rows())
    finally:
        laboratory.close()


def scripted_rows(prompts: Sequence[str], samples: int = 2) -> list[dict[str, Any]]:
    """The rows of a scripted job as they must be read: a function of their names, whoever made them."""
    return [
        {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
        for i, prompt in enumerate(prompts)
        if not prompt.startswith("poison")
        for row in (made_row(SnapshotRow(i, str(i), prompt=prompt), g) for g in range(samples))
    ]


TWELVE = scripted_rows([f"p{i}" for i in range(12)])  # of the lab's usual job


def assert_complete(lab: Lab, job: JobHandle, expected: list[dict[str, Any]], state: str = "succeeded") -> None:
    """Every (prompt, sample) exactly once in rows or errors, each row equal to the undisturbed run's, the manifest
    equal to the database, and no file left that no row names."""
    collect(lab.client.store, lab.settings)
    record = job.refresh()
    assert record.state == state
    rows, failed = list(job.rows()), [error["prompt_index"] for error in job.results.errors()]
    undone = [shard for shard in lab.client.store.shards(job.id) if shard.state != "done"]
    assert not undone or state != "succeeded"
    missing = {shard.first_prompt + i for shard in undone for i in range(shard.stop - shard.start)}
    samples = range(record.num_sequences // record.num_prompts)
    found = [(row["prompt_index"], row["sample_index"]) for row in rows]
    assert sorted(found + [(p, g) for p in failed for g in samples]) == [
        (p, g) for p in range(record.num_prompts) if p not in missing for g in samples
    ]
    assert rows == expected
    folder = lab.settings.results / "jobs" / job.id
    assert verify(folder) == []
    assert read_manifest(folder) == build(lab.client.store, job.id)
    named = [name for shard in lab.client.store.shards(job.id) for name in (shard.file, shard.errors_file) if name]
    assert lab.files(job) == set(named), "no orphan is left after gc"
    assert lab.client.store.totals(job.id).items() <= {n: getattr(record, n) for n in record.__slots__}.items()
