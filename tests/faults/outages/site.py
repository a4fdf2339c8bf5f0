"""One database, one results root, and real processes on them that a test disturbs; and what must hold at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs import Client
from jobs.child import environment
from jobs.client import JobHandle
from jobs.gc import collect
from jobs.manifest import build, read_manifest, verify
from jobs.paths import JobPaths
from jobs.settings import Settings
from jobs.states import ShardState
from tests.faults.outages.puppet import PAUSE, POISON, STEP, StandIn
from worker.drain import Drain
from worker.stop import Stop

SPEC: dict[str, Any] = {"model": "stand-in/model", "G": 2, "seed": 1, "shard_size": 4}
SUBMIT = ("--model", "stand-in/model", "-G", "2", "--shard-size", "4")  # the same for the command, but for the seed
PROMPTS = [f"prompt {i}" if i % 7 else POISON for i in range(1, 25)]  # 6 shards, 3 prompts that fail
LEASE, HEARTBEAT, POLL = 4.0, 0.2, 0.1  # seconds
PATIENCE = 180.0  # seconds, for what a loaded machine takes its time for

Made = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # rows and prompt errors


class Process(subprocess.Popen[bytes]):
    """A process and the file of its stderr, which for a worker is its log."""

    stderr_file: Path

    def said(self) -> str:
        return self.stderr_file.read_text(errors="replace")

    def suspend(self) -> None:
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.send_signal(signal.SIGCONT)


class Site:
    """A client in this process, workers and commands in their own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        usual = {"home": folder / "home", "lease_seconds": LEASE, "heartbeat_seconds": HEARTBEAT, "poll_seconds": POLL}
        self.settings = Settings(**usual | settings)
        self.client = Client(self.settings)
        self.processes: list[Process] = []

    @property
    def store(self) -> Any:
        return self.client.store

    def submit(self, prompts: Sequence[str] = PROMPTS, **fields: Any) -> JobHandle:
        return self.client.submit(prompts=list(prompts), **SPEC | fields)

    def worker(self, *flags: str, step: float = 0.02, **options: Any) -> Process:
        """A worker whose rows take `step` seconds each."""
        return self.command("worker", *flags, step=step, **options)

    def command(
        self,
        *arguments: str,
        step: float = 0,
        clock: Path | None = None,
        settings: Settings | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Process:
        """`seqproc` with these arguments; with other settings, or a clock that is wrong by what the file says."""
        errors = self.folder / f"process-{len(self.processes)}.stderr"
        early = ["--clock", str(clock)] if clock else []
        with errors.open("wb") as stderr:
            process = Process(
                [sys.executable, "-P", "-m", "tests.faults.outages.puppet", *early, *arguments],
                env=environment(settings or self.settings)
                | {STEP: str(step), PAUSE: "0.3", "PYTHONPATH": str(Path(__file__).parents[3])},
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        process.stderr_file = errors
        self.processes.append(process)
        return process

    def until(self, what: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait for a condition; fails with the processes' last words when it never comes."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {seconds:g} s in vain\n{self.last_words()}")
            time.sleep(0.02)

    def mid_shard(self, job: JobHandle, after_shards: int = 1) -> None:
        """Wait until some shards are done and another one is in the middle of generating."""
        self.until(lambda: job.refresh().done_shards >= after_shards and self.store.running_progress(job.id)[1] > 0)

    def until_ended(self, *jobs: JobHandle, seconds: float = PATIENCE) -> None:
        self.until(lambda: all(job.refresh().state.ended for job in jobs), seconds)

    @contextmanager
    def waiting(self, job: JobHandle) -> Iterator[list[BaseException]]:
        """A client that waits for the job meanwhile, and must come back by itself; yields what it raised."""
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                with Client(self.settings) as client:
                    client.get(job.id).wait(start_worker=False)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        yield raised
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"the waiting client never came back\n{self.last_words()}"
        assert raised == []

    def leave(self, *workers: Process) -> None:
        """Each worker is still there, and leaves in order when it is told to."""
        for worker in workers:
            worker.terminate()
        for worker in workers:
            assert worker.wait(PATIENCE) == 0, worker.said()

    def last_words(self) -> str:
        return "\n".join(f"{p.args[4:]} → {p.poll()}: {p.said()[-1500:]}" for p in self.processes)  # type: ignore[index]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.client.close()


class Reference:
    """What jobs make when nothing happens to them: drained in this process, on a database of its own."""

    def __init__(self, folder: Path) -> None:
        self._site = Site(folder)
        self._made: dict[str, Made] = {}

    def of(self, prompts: Sequence[str], **fields: Any) -> Made:
        key = json.dumps([list(prompts), fields], sort_keys=True)
        if key not in self._made:
            job = self._site.submit(prompts, **fields)
            Drain(self._site.store, self._site.settings, StandIn(), "reference", ["default"], Stop()).once()
            self._made[key] = (list(job.rows()), list(job.results.errors()))
        return self._made[key]

    def close(self) -> None:
        self._site.close()


def assert_intact(site: Site, job: JobHandle, expected: Made) -> None:
    """Every (prompt, sample) that was done exactly once, in rows or errors, as undisturbed; nothing else on disk."""
    collect(site.store, site.settings)
    record, shards = job.refresh(), site.store.shards(job.id)
    assert record.state.ended
    totals = site.store.totals(job.id)
    assert {name: getattr(record, name) for name in totals} == totals
    done = [shard for shard in shards if shard.state is ShardState.DONE]
    prompts = {p for shard in done for p in range(shard.first_prompt, shard.first_prompt + shard.stop - shard.start)}
    if record.state == "succeeded":
        assert prompts == set(range(record.num_prompts))

    rows, errors = list(job.rows()), list(job.results.errors())
    stands = Counter((row["prompt_index"], row["sample_index"]) for row in rows)
    stands.update((error["prompt_index"], g) for error in errors for g in range(record.spec["G"]))
    assert stands == {(p, g): 1 for p in prompts for g in range(record.spec["G"])}
    for made, undisturbed in zip((rows, errors), expected, strict=True):
        assert made == [row for row in undisturbed if row["prompt_index"] in prompts]

    attempts = site.store.attempts(job.id)
    assert all(attempt.outcome for attempt in attempts)
    assert Counter(a.shard for a in attempts if a.outcome == "done") == {shard.index: 1 for shard in done}

    paths = JobPaths(site.settings.results, job.id)
    assert verify(paths.folder) == []
    assert read_manifest(paths.folder) == json.loads(json.dumps(build(site.store, job.id)))
    on_disk = {f"{f.parent.name}/{f.name}" for folder in (paths.shards, paths.errors) for f in folder.iterdir()}
    assert on_disk == {name for shard in done for name in (shard.file, shard.errors_file) if name}, "no orphan is left"
    known = site.store.job_ids()
    assert {path.name for path in paths.folder.parent.iterdir()} <= known, "no folder without a row"


def assert_undisturbed(site: Site, job: JobHandle, expected: Made) -> None:
    """`assert_intact`, the job succeeded, and no shard was held to have failed."""
    assert job.refresh().state == "succeeded"
    assert {shard.index: shard.failures for shard in site.store.shards(job.id) if shard.failures} == {}
    assert_intact(site, job, expected)


def outcomes(site: Site, job: JobHandle) -> Counter[str | None]:
    """How the attempts at the job's shards ended."""
    return Counter(attempt.outcome for attempt in site.store.attempts(job.id))


_HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def hold_lock(file: Path) -> subprocess.Popen[bytes]:
    """A process that takes SQLite's write lock, says so, and holds it until its stdin is closed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", _HOLD, file], **pipes)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process holds SQLite's write lock during the block."""
    holder = hold_lock(file)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"locked\n"
        yield
    finally:
        holder.communicate()


def wrong_by(file: Path, seconds: float) -> None:
    """Sets the clocks of the processes that read this file."""
    fresh = file.with_suffix(".new")
    fresh.write_text(str(seconds))
    os.replace(fresh, file)  # noqa: PTH105
