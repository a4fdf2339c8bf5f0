"""`doctor`: whether everything that a job needs is there, a line each, with what to do about what is not.

Nothing heavy is loaded in this process: what the devices are is asked of a child, with a time limit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import typer

from jobs.cli.output import JsonFlag, Output, plural, size, stdout_console
from jobs.errors import SeqprocError, StoreError

if TYPE_CHECKING:
    from jobs.settings import Settings
    from jobs.store import Store

_DEVICE_SECONDS = 60.0  # importing torch from a cold disk takes tens of seconds
_LITTLE_SPACE = 2e9  # bytes

_DEVICES = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"torch": torch.__version__, "gpus": names, "threads": torch.get_num_threads()}))
"""


class Verdict(StrEnum):
    """How a check came out; only `fail` makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: what was found, and what to do about it (empty where all is well)."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def doctor(as_json: JsonFlag = False) -> None:
    """Check the installation.

    Database, results folder, devices, workers, waiting jobs. Exit code 1 if something is broken.
    """
    from jobs.settings import Settings

    out = Output(as_json=as_json)
    checks = []
    for check in _checks(Settings.load()):
        checks.append(check)
        if not out.as_json:
            _print(check)
    if out.as_json:
        out.json(checks)
    raise typer.Exit(1 if any(check.verdict is Verdict.FAIL for check in checks) else 0)


def _print(check: Check) -> None:
    from rich.text import Text

    from jobs.cli.output import clean_line

    colour = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}[check.verdict]
    line = Text(f"{check.verdict:<4}", style=colour)
    line.append(f"  {check.name}: {clean_line(check.found)}", style="default")
    if check.remedy:
        line.append(f"\n      {clean_line(check.remedy)}", style="default")
    stdout_console().print(line, soft_wrap=True)


def _checks(settings: Settings) -> Iterator[Check]:
    import jobs

    where = Path(jobs.__file__).parent
    yield Check("version", Verdict.OK, f"{version('sequence-processor')}, imported from {where}")
    store = None
    try:
        store, check = _database(settings)
        yield check
        yield _data(settings)
        yield _devices()
        if store is not None:
            yield _results(settings, store)
            yield _workers(store)
            yield _waiting(store)
    finally:
        if store is not None:
            store.close()


def _database(settings: Settings) -> tuple[Store | None, Check]:
    from jobs.store import Store

    try:
        store = Store.open(settings)
        have, _want = store.schema_version()
    except StoreError as error:
        return None, Check("database", Verdict.FAIL, str(error), "See SEQPROC_DATABASE_URL and SEQPROC_HOME.")
    return store, Check("database", Verdict.OK, f"{store.url}, schema {have}")


def _results(settings: Settings, store: Store) -> Check:
    from jobs.store_id import check_root

    root, remedy = settings.results, "See SEQPROC_RESULTS_DIR."
    try:
        check_root(store, root)  # as the first submit would
        with TemporaryFile(dir=root):
            pass
    except (SeqprocError, OSError) as error:
        return Check("results", Verdict.FAIL, str(error), remedy)
    free = shutil.disk_usage(root).free
    if free < _LITTLE_SPACE:
        return Check("results", Verdict.WARN, f"{root}, only {size(free)} free", "Make room, or run: seqproc gc")
    return Check("results", Verdict.OK, f"{root}, writable, {size(free)} free")


def _data(settings: Settings) -> Check:
    if settings.data_dir is None:
        return Check("datasets", Verdict.OK, "from the hub (SEQPROC_DATA_DIR is not set)")
    if not settings.data_dir.is_dir():
        found = f"SEQPROC_DATA_DIR is {settings.data_dir}, which is no folder"
        return Check("datasets", Verdict.FAIL, found, "Name an existing folder, or unset it to use the hub.")
    return Check("datasets", Verdict.OK, f"from {settings.data_dir} where it has them, else from the hub")


def _devices() -> Check:
    remedy = "Install the packages again (make install)."
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _DEVICES], capture_output=True, text=True, timeout=_DEVICE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("devices", Verdict.WARN, f"torch did not answer within {_DEVICE_SECONDS:.0f} s", "Try again.")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Check("devices", Verdict.FAIL, f"torch cannot be used: {last}", remedy)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if found["gpus"]:
        return Check("devices", Verdict.OK, f"{', '.join(found['gpus'])} (torch {found['torch']})")
    return Check("devices", Verdict.OK, f"CPU, {plural(found['threads'], 'thread')} (torch {found['torch']}); no GPU")


def _workers(store: Store) -> Check:
    from jobs.processes import is_dead

    alive = [worker for worker in store.workers() if not is_dead(worker)]
    paused = [f"{worker.id}: {worker.paused}" for worker in alive if worker.paused]
    if paused:
        return Check(
            "workers", Verdict.WARN, f"paused: {'; '.join(paused)}", "Mend what it says; the worker goes on by itself."
        )
    if not alive:
        return Check("workers", Verdict.OK, "none alive; a following submit starts one")
    return Check("workers", Verdict.OK, f"{len(alive)} alive: {', '.join(worker.id for worker in alive)}")


def _waiting(store: Store) -> Check:
    from jobs.child import serving
    from jobs.states import JobState

    waiting = [job for job in store.jobs(states=[JobState.QUEUED, JobState.RUNNING]) if not serving(store, job.queue)]
    if not waiting:
        return Check("queues", Verdict.OK, "no job waits for a worker")
    queues = sorted({job.queue for job in waiting})
    commands = " and ".join(f"seqproc worker --queue {queue}" for queue in queues)
    return Check("queues", Verdict.WARN, f"{plural(len(waiting), 'job')} with no worker alive", f"Start: {commands}")
