"""Real worker processes on a real SQLite file, to be killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs import Client
from jobs.client import JobHandle
from jobs.settings import Settings

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


class Lab:
    """One database, one results folder, and the worker processes that a test starts on them."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.settings = Settings(home=home, lease_seconds=3, heartbeat_seconds=0.2, poll_seconds=0.1, **settings)
        self.client = Client(self.settings)
        self.workers: list[subprocess.Popen[bytes]] = []

    def start_worker(self, *flags: str) -> subprocess.Popen[bytes]:
        variables = {
            "SEQPROC_HOME": self.settings.home,
            "SEQPROC_LEASE_SECONDS": self.settings.lease_seconds,
            "SEQPROC_HEARTBEAT_SECONDS": self.settings.heartbeat_seconds,
            "SEQPROC_POLL_SECONDS": self.settings.poll_seconds,
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "jobs", "worker", *flags],
            env=os.environ | {name: str(value) for name, value in variables.items()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.workers.append(process)
        return process

    def until(self, what: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for a condition; fails with the workers' last words when it never comes."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {seconds} s in vain; workers ended with {[p.poll() for p in self.workers]}")
            time.sleep(0.02)

    def mid_shard(self, job: JobHandle, after_shards: int = 1) -> None:
        """Wait until some shards are done and another one is in the middle of generating."""
        self.until(
            lambda: job.refresh().done_shards >= after_shards and self.client.store.running_progress(job.id)[1] > 0
        )

    def freeze(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGSTOP, but not inside a transaction: SQLite's one write lock would stay with the frozen process."""
        for _ in range(200):
            worker.send_signal(signal.SIGSTOP)
            with closing(sqlite3.connect(self.settings.home / "seqproc.db", timeout=0.1)) as database:
                try:
                    database.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError:
                    worker.send_signal(signal.SIGCONT)
                    time.sleep(0.01)
        pytest.fail("the worker was always found inside a transaction")

    def close(self) -> None:
        for process in self.workers:
            process.kill()
            process.communicate()
        self.client.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    laboratory = Lab(tmp_path / "home")
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


def assert_complete(lab: Lab, job: JobHandle, expected: list[dict[str, Any]]) -> None:
    """Every (prompt, sample) exactly once, each row equal to the undisturbed run's, manifest equal to the database."""
    from jobs.gc import collect
    from jobs.manifest import verify

    record = job.refresh()
    assert record.state == "succeeded"
    rows = list(job.rows())
    keys = [(row["prompt_index"], row["sample_index"]) for row in rows]
    assert keys == [
        (p, g) for p in range(record.num_prompts) for g in range(record.num_sequences // record.num_prompts)
    ]
    assert rows == expected
    collect(lab.client.store, lab.settings)
    assert verify(lab.settings.results / "jobs" / job.id) == []
    named = {shard.file for shard in lab.client.store.shards(job.id)}
    folder = lab.settings.results / "jobs" / job.id
    assert {f"shards/{path.name}" for path in (folder / "shards").iterdir()} == named, "no orphan is left after gc"
