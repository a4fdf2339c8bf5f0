"""Any command of `seqproc` with faults planted in it: at a named point its process dies, waits, or meets another.

    python -P -m tests.faults.puppet FOLDER POINT:ACTION[:N] … -- worker --idle-exit

A point is the moment before or after a call of one function of the product. `die` and `wait` act the Nth time that it
is passed (the first), `meet` the first N times; `limit` lets the first call have N MB of memory more. Shards are run by
the `ScriptedEngine`, or with `real` by the real one.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.pysqlite  # noqa: F401  all that a worker imports is to be there before the fork

import jobs.cli.app  # noqa: F401
import worker.drain
import worker.engine
from jobs import manifest, parquet
from jobs.cli import main as seqproc
from jobs.records import Job
from jobs.snapshot import SnapshotRow
from jobs.store import Store
from tests.rows import made_row
from worker.engine import CoreEngine, OnStep, ShardRows

# point → (whose function, its name, after the call that gave something, or before)
POINTS: dict[str, tuple[Any, str, bool]] = {
    "submitting": (Store, "create_job", False),
    "claiming": (Store, "claim", False),
    "claimed": (Store, "claim", True),
    "running": (CoreEngine, "run", False),
    "writing": (parquet, "_table", False),  # a temporary file is open
    "written": (Store, "commit", False),
    "committed": (Store, "commit", True),
    "ended": (manifest, "build", False),  # the job has ended and has no manifest
}


class ScriptedEngine:
    """Makes rows that are a function of their names. A prompt's first word says what else happens to its worker."""

    device = "cpu"
    loaded = None

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def prepare(self, job: Job) -> dict[str, str]:
        return {"model": "sha256:scripted"}

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        made = ShardRows()
        for prompt in rows:
            match (prompt.prompt or "").split():
                case ["die", *_]:
                    die()
                case ["crash", *_]:
                    faulthandler._sigsegv()  # type: ignore[attr-defined]
                case ["poison", *_]:
                    made.fail(prompt, "the prompt cannot be taken")
                    continue
                case ["sleep", seconds]:
                    until(lambda end=time.monotonic() + float(seconds): on_step(0, 0) or time.monotonic() > end)
            for sample in range(job.num_sequences // job.num_prompts):
                made.rows.append(made_row(prompt, sample))
                on_step(1, 1)
        return made

    def details(self) -> dict[str, Any]:
        return {"device": "none"}


def until(what: Callable[[], bool], every: float = 0.01) -> None:
    while not what():
        time.sleep(every)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(folder: Path) -> None:
    (folder / "waiting").touch()
    until((folder / "go").exists)


def meet(folder: Path, number: int) -> None:
    """Go on together with another puppet that passes this point for the same time."""
    (folder.parent / f"meet-{number}-{os.getpid()}").touch()
    until(lambda: len(list(folder.parent.glob(f"meet-{number}-*"))) > 1, every=0.001)


@contextmanager
def limited(megabytes: int) -> Iterator[None]:
    """This process may take so much more address space."""
    most = psutil.Process().memory_info().vms + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def plant(folder: Path, fault: str) -> None:
    point, action, *numbers = fault.split(":")
    number = int(numbers[0]) if numbers else 1
    owner, name, after = POINTS[point]
    real, passed, called = getattr(owner, name), count(1), count(1)

    def act() -> None:
        time_passed = next(passed)
        if action == "meet" and time_passed <= number:
            meet(folder, time_passed)
        elif action == "wait" and time_passed == number:
            wait(folder)
        elif action == "die" and time_passed == number:
            die()

    @functools.wraps(real)
    def planted(*args: Any, **options: Any) -> Any:
        if not after:
            act()
        with limited(number) if action == "limit" and next(called) == 1 else nullcontext():
            result = real(*args, **options)
        if after and result:
            act()
        return result

    setattr(owner, name, planted)


def perform(folder: Path, faults: Sequence[str], command: Sequence[str]) -> None:
    """Run the command in this process and end it."""
    if "real" not in faults:
        worker.engine.CoreEngine = ScriptedEngine  # type: ignore[assignment,misc]
    for fault in faults:
        if fault != "real":
            plant(folder, fault)
    sys.argv = ["seqproc", *command]
    seqproc()


def forked(folder: Path, faults: Sequence[str], command: Sequence[str], environment: dict[str, str]) -> None:
    """The same in a process that was forked where all is imported: two seconds of imports would be most of a test."""
    os.environ.clear()
    os.environ.update(environment)
    with (folder / "stderr").open("wb") as stderr, Path(os.devnull).open("wb") as nowhere:
        os.dup2(stderr.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
    perform(folder, faults, command)


if __name__ == "__main__":
    split = sys.argv.index("--")
    perform(Path(sys.argv[1]), sys.argv[2:split], sys.argv[split + 1 :])
