"""A lane: one database, one results folder, a way for workers to hear of work, and the workers that a test starts."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

import numpy as np
import pytest

from jobs import Client
from jobs.child import environment
from jobs.client import JobHandle
from jobs.gc import collect
from jobs.manifest import verify
from jobs.settings import Settings
from jobs.snapshot import SnapshotRow
from tests.lanes.engine import HeldEngine
from tests.rows import made_row
from worker.bell import the_bell
from worker.drain import Drain
from worker.stop import Stop

NEVER = 3_600.0  # seconds between polls: what is heard, is heard by a ring
PROMPTS = [f"p{i}" for i in range(12)]
SAMPLES = 2
PER_SHARD = 2
SHARDS = len(PROMPTS) // PER_SHARD


class LaneWorker(Protocol):
    """A worker that a test started."""

    def leave(self) -> None:
        """Ask it to leave; returns when it has."""


class Lane:
    """`in_process`: workers are threads of this process, else processes of their own."""

    def __init__(self, settings: Settings, folder: Path, *, in_process: bool = False) -> None:
        self.settings = settings
        self.client = Client(settings)
        self.store = self.client.store
        self._hold = folder / "hold"
        self._in_process = in_process
        self._workers: list[_Process | _Thread] = []

    def hold(self) -> None:
        """From now on no worker gets on with a shard."""
        self._hold.touch()

    def release(self) -> None:
        self._hold.unlink()

    def start(
        self, *, queues: Sequence[str] = ("default",), poll: float | None = None, rings: int = 1
    ) -> _Process | _Thread:
        """Start a worker, and wait until it has looked at the database and found nothing."""
        changes = {} if poll is None else {"poll_seconds": poll}
        settings = self.settings.model_copy(update=changes)
        started = len(self.store.workers())
        if self._in_process:
            self._workers.append(_Thread(settings, self._hold, queues, f"w{len(self._workers)}"))
        else:
            self._workers.append(_Process(settings, self._hold, queues, rings))
        self.until(lambda: len(self.store.workers()) > started and all(w.beat for w in self.store.workers()))
        return self._workers[-1]

    def submit(self, **fields: Any) -> JobHandle:
        spec: dict[str, Any] = {"model": "tiny-arithmetic", "G": SAMPLES, "seed": 1, "shard_size": PER_SHARD} | fields
        return self.client.submit(prompts=PROMPTS, **spec)

    def until(self, what: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for a condition; fails with the workers' last words when it never comes."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                words = "\n\n".join(worker.words() for worker in self._workers)
                pytest.fail(f"waited {seconds} s in vain; the workers said:\n{words}")
            time.sleep(0.02)

    def until_done(self, job: JobHandle) -> None:
        """Wait until the job succeeded and its manifest is written; then all of it must be as it should."""
        self.until(lambda: job.refresh().state.ended and job.record.manifest_revision == job.record.revision)
        assert_whole(self, job)

    def close(self) -> None:
        self._hold.unlink(missing_ok=True)
        for worker in self._workers:
            worker.kill()
        self.client.close()


class _Process:
    def __init__(self, settings: Settings, hold: Path, queues: Sequence[str], rings: int) -> None:
        self._output = TemporaryFile()  # noqa: SIM115  read when something went wrong
        routes = [item for queue in queues for item in ("--queue", queue)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.lanes.worker", str(hold), *routes, "--rings", str(rings)],
            cwd=Path(__file__).resolve().parents[2],
            env=environment(settings) | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def leave(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0, self.words()

    def words(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._output.close()


class _Thread:
    def __init__(self, settings: Settings, hold: Path, queues: Sequence[str], worker_id: str) -> None:
        self._settings, self._hold, self._queues, self._id = settings, hold, list(queues), worker_id
        self._stop = Stop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with Client(self._settings) as client, the_bell(client.store, self._settings, self._queues) as bell:
            engine = HeldEngine(self._hold)
            drain = Drain(client.store, self._settings, engine, self._id, self._queues, self._stop, bell)
            drain.register()
            drain.until_stopped()
            client.store.forget_worker(self._id)

    def leave(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def words(self) -> str:
        return f"{self._id} is {'alive' if self._thread.is_alive() else 'gone'}"

    def kill(self) -> None:
        self._stop.set()
        self._thread.join(30)


def assert_whole(lane: Lane, job: JobHandle) -> None:
    """Every (prompt, sample) exactly once, each row what its name says; manifest equal to the database; no orphan."""
    record = job.refresh()
    assert record.state == "succeeded"
    assert list(job.rows()) == expected()
    collect(lane.store, lane.settings)
    folder = lane.settings.results / "jobs" / job.id
    assert verify(folder) == []
    named = {shard.file for shard in lane.store.shards(job.id)}
    assert {f"shards/{path.name}" for path in (folder / "shards").iterdir()} == named


def expected() -> list[dict[str, Any]]:
    """The rows of PROMPTS, without store, worker or file."""
    prompts = [SnapshotRow(i, str(i), text) for i, text in enumerate(PROMPTS)]
    return [_plain(made_row(prompt, sample)) for prompt in prompts for sample in range(SAMPLES)]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
