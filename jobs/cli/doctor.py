"""`doctor`: whether everything that a job needs is there, a line each, with what to do about what is not.

Nothing heavy is loaded in this process: what the devices are is asked of a child, which works while the rest is looked
at. Nothing is waited for without a limit, and no line shows a password.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

from jobs.cli.output import JsonFlag, Output, stdout_console
from jobs.errors import SeqprocError, StoreError
from jobs.redact import without_credentials
from jobs.text import plural, size

if TYPE_CHECKING:
    from jobs.settings import Settings
    from jobs.store import Store

_DISTRIBUTION = "sequence-processor"
_PACKAGES = ("jobs", "worker", "webui", "sequence_processing", "rlp_datasets")
_NO_SETTINGS = ("SEQPROC_DEBUG",)  # read elsewhere
_DEVICE_SECONDS = 60.0  # importing torch from a cold disk takes tens of seconds
_BROKER_SECONDS = 3.0
_CACHE_SECONDS = 2.0  # of adding up the sizes of the model cache
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

    Package, settings, database, broker, results folder, workers, waiting jobs, datasets, model cache, devices. Exit
    code 1 if something is broken.
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

    from jobs.text import clean_line

    colour = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}[check.verdict]
    line = Text(f"{check.verdict:<4}", style=colour)
    line.append(f"  {check.name}: {clean_line(check.found)}", style="default")
    if check.remedy:
        line.append(f"\n      {clean_line(check.remedy)}", style="default")
    stdout_console().print(line, soft_wrap=True)


def _checks(settings: Settings) -> Iterator[Check]:
    devices = subprocess.Popen(
        [sys.executable, "-P", "-c", _DEVICES], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    store = None
    try:
        yield _package()
        yield _current_folder()
        yield _settings(settings)
        store, check = _database(settings)
        yield check
        yield _broker(settings)
        if store is not None:
            yield _results(settings, store)
            yield _workers(store)
            yield _waiting(store)
        yield _data(settings)
        yield _model_cache()
        yield _devices(devices)
    finally:
        devices.kill()
        devices.communicate()
        if store is not None:
            store.close()


def _package() -> Check:
    """Which of several installations and checkouts is running is not always the one that a person thinks of."""
    import jobs

    used = Path(jobs.__file__).resolve().parent
    remedy = "Start the command seqproc itself, or Python with -P and without PYTHONPATH."
    try:
        installed = distribution(_DISTRIBUTION)
    except PackageNotFoundError:
        return Check("version", Verdict.WARN, f"imported from {used}, and {_DISTRIBUTION} is not installed", remedy)
    source = json.loads(installed.read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        expected = Path(url2pathname(urlsplit(source["url"]).path)) / "jobs"
    else:
        expected = Path(str(installed.locate_file("jobs")))
    if expected.resolve() != used:
        found = f"{installed.version} is installed at {expected.parent}, but jobs was imported from {used}"
        return Check("version", Verdict.WARN, found, remedy)
    return Check("version", Verdict.OK, f"{installed.version}, imported from {used}")


def _current_folder() -> Check:
    """A folder or file of a package's name is what `import` finds first where Python is started beside it."""
    here = Path.cwd()
    hiding = []
    for package in _PACKAGES:
        spec = find_spec(package)
        own = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
        hiding += [found for found in (here / package, here / f"{package}.py") if found.exists() and found != own]
    if hiding:
        names = ", ".join(path.name for path in hiding)
        remedy = "Rename it, or start Python elsewhere or with -P; the command seqproc is not misled."
        return Check("folder", Verdict.WARN, f"{here} holds {names}, which Python takes for our package there", remedy)
    return Check("folder", Verdict.OK, f"nothing in {here} hides a package of ours")


def _settings(settings: Settings) -> Check:
    wrong = [*_unknown_settings(type(settings)), *_contradictions(settings)]
    if wrong:
        return Check("settings", Verdict.WARN, "; ".join(wrong), "See the table of settings in the README.")
    return Check("settings", Verdict.OK, "none is unknown, and none contradicts another")


def _unknown_settings(kind: type[Settings]) -> Iterator[str]:
    known = [f"SEQPROC_{name.upper()}" for name in kind.model_fields]
    for name in sorted(os.environ):
        if name.startswith("SEQPROC_") and name not in known and name not in _NO_SETTINGS:
            near = get_close_matches(name, known, n=1)
            yield f"there is no setting {name}" + (f", did you mean {near[0]}?" if near else "")


def _contradictions(settings: Settings) -> Iterator[str]:
    from jobs.presence import SILENT_SECONDS
    from jobs.store.database import BUSY_SECONDS

    if settings.lease_seconds < 3 * settings.heartbeat_seconds:
        yield (
            f"SEQPROC_LEASE_SECONDS={settings.lease_seconds:g} leaves no room for three heartbeats "
            f"(SEQPROC_HEARTBEAT_SECONDS={settings.heartbeat_seconds:g}): living workers would lose their shards"
        )
    if max(settings.poll_seconds, settings.heartbeat_seconds) >= SILENT_SECONDS:
        yield f"with SEQPROC_POLL_SECONDS and SEQPROC_HEARTBEAT_SECONDS from {SILENT_SECONDS:g} on workers look gone"
    if settings.watchdog_seconds <= BUSY_SECONDS:
        yield (
            f"SEQPROC_WATCHDOG_SECONDS={settings.watchdog_seconds:g} is no longer than a wait for the database may be "
            f"({BUSY_SECONDS} s): working workers would end themselves"
        )
    if settings.webhook_hosts and settings.webhook_secret is None:
        yield "SEQPROC_WEBHOOK_HOSTS without SEQPROC_WEBHOOK_SECRET: nothing signs what these hosts are told"
    if settings.webhook_secret is not None and not settings.webhook_hosts:
        yield "SEQPROC_WEBHOOK_SECRET without SEQPROC_WEBHOOK_HOSTS: nobody may be told anything"
    for root in settings.model_roots:
        if not root.is_dir():
            yield f"SEQPROC_MODEL_ROOTS names {root}, which is no folder"


def _database(settings: Settings) -> tuple[Store | None, Check]:
    from jobs.store import Store

    try:
        store = Store.open(settings)
        have, _want = store.schema_version()
    except StoreError as error:
        return None, Check("database", Verdict.FAIL, str(error), "See SEQPROC_DATABASE_URL and SEQPROC_HOME.")
    return store, Check("database", Verdict.OK, f"{store.url}, schema {have}")


def _broker(settings: Settings) -> Check:
    if not settings.redis_url:
        found = f"none, workers look by themselves every {settings.poll_seconds:g} s (SEQPROC_REDIS_URL is not set)"
        return Check("broker", Verdict.OK, found)
    remedy = "Start Redis, or mend SEQPROC_REDIS_URL, or unset it: workers then look at the database by themselves."
    if missing := [name for name in ("redis", "celery") if find_spec(name) is None]:
        found = f"SEQPROC_REDIS_URL needs the packages redis and celery, and {missing[0]} is not installed"
        return Check("broker", Verdict.FAIL, found, f"Install {_DISTRIBUTION}[redis].")
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    place = without_credentials(settings.redis_url)
    limits = {"socket_timeout": _BROKER_SECONDS, "socket_connect_timeout": _BROKER_SECONDS}
    try:
        client = redis.Redis.from_url(settings.redis_url, retry=Retry(NoBackoff(), 0), **limits)
        with client:
            client.ping()
    except (redis.RedisError, OSError, ValueError, TypeError) as error:  # the last two for a parameter of the URL
        found = f"{place} does not answer as it should: {without_credentials(str(error), settings.redis_url)}"
        return Check("broker", Verdict.FAIL, found, remedy)
    return Check("broker", Verdict.OK, f"{place} answers")


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
    return Check("results", Verdict.OK, f"{root}, writable, {size(free)} free, store {store.store_id}")


def _data(settings: Settings) -> Check:
    if settings.data_dir is None:
        return Check("datasets", Verdict.OK, "from the hub (SEQPROC_DATA_DIR is not set)")
    if not settings.data_dir.is_dir():
        found = f"SEQPROC_DATA_DIR is {settings.data_dir}, which is no folder"
        return Check("datasets", Verdict.FAIL, found, "Name an existing folder, or unset it to use the hub.")
    return Check("datasets", Verdict.OK, f"from {settings.data_dir} where it has them, else from the hub")


def _model_cache() -> Check:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with TemporaryFile(dir=existing):
            pass
    except OSError as error:
        found = f"{folder} is not writable ({error.strerror}); models that are not there yet cannot be had"
        return Check("models", Verdict.WARN, found, "Give yourself the right to write there, or set HF_HOME.")
    free = shutil.disk_usage(existing).free
    if existing != folder:
        held = "empty"
    else:
        bytes_held, all_seen = _size_of(folder)
        models = sum(1 for _ in folder.glob("models--*"))
        held = f"{plural(models, 'model')}, {'' if all_seen else 'more than '}{size(bytes_held)}"
    found = f"{folder}, {held}, writable, {size(free)} free{offline}"
    if free < _LITTLE_SPACE:
        return Check("models", Verdict.WARN, found, "Make room there (hf cache delete), or set HF_HOME.")
    return Check("models", Verdict.OK, found)


def _size_of(folder: Path) -> tuple[int, bool]:
    """Bytes of the files under `folder`, and whether the time sufficed to see them all. Links count as nothing."""
    deadline, total, folders = time.monotonic() + _CACHE_SECONDS, 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if time.monotonic() > deadline:
                        return total, False
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # not ours to look into, or gone meanwhile
            continue
    return total, True


def _devices(child: subprocess.Popen[str]) -> Check:
    try:
        answer, complaint = child.communicate(timeout=_DEVICE_SECONDS)
    except subprocess.TimeoutExpired:
        return Check("devices", Verdict.WARN, f"torch did not answer within {_DEVICE_SECONDS:.0f} s", "Try again.")
    if child.returncode != 0:
        last = (complaint.strip().splitlines() or ["it said nothing"])[-1]
        remedy = "Install the packages again (make install)."
        return Check("devices", Verdict.FAIL, f"torch cannot be used: {last}", remedy)
    found = json.loads(answer.strip().splitlines()[-1])
    if found["gpus"]:
        return Check("devices", Verdict.OK, f"{', '.join(found['gpus'])} (torch {found['torch']})")
    return Check("devices", Verdict.OK, f"CPU, {plural(found['threads'], 'thread')} (torch {found['torch']}); no GPU")


def _workers(store: Store) -> Check:
    from jobs.presence import alive

    living = alive(store)
    paused = [f"{worker.id}: {worker.paused}" for worker in living if worker.paused]
    if paused:
        return Check(
            "workers", Verdict.WARN, f"paused: {'; '.join(paused)}", "Mend what it says; the worker goes on by itself."
        )
    if not living:
        return Check("workers", Verdict.OK, "none alive; a following submit starts one")
    return Check("workers", Verdict.OK, f"{len(living)} alive: {', '.join(worker.id for worker in living)}")


def _waiting(store: Store) -> Check:
    from jobs.presence import serving
    from jobs.states import JobState

    waiting = [job for job in store.jobs(states=[JobState.QUEUED, JobState.RUNNING]) if not serving(store, job.queue)]
    if not waiting:
        return Check("queues", Verdict.OK, "no job waits for a worker")
    queues = sorted({job.queue for job in waiting})
    commands = " and ".join(f"seqproc worker --queue {queue}" for queue in queues)
    return Check("queues", Verdict.WARN, f"{plural(len(waiting), 'job')} with no worker alive", f"Start: {commands}")
