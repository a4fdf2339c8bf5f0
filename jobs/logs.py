"""Reading what workers logged about a job: JSON lines, a file a worker, under the results root."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.paths import worker_log
from jobs.store import Store

_LOOK_EVERY = 0.3  # seconds
_TAIL = 65_536  # bytes of a log in which last words are looked for
_SHOWN = 500  # characters of them
_FURTHEST = 64 * _TAIL  # bytes of a log in which a job's last lines are looked for
_HEADLINES = (b"Fatal Python error: ", b"Timeout (")  # of a crash, and of a hang that let no Python run
_STOOD_AT = re.compile(r"^(?P<current>Current )?[Tt]hread .*\n\s*(?P<frame>File .*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LogPart:
    """Lines of a job, oldest first; `read` is where the next part begins, and after `last` there is none."""

    lines: list[dict[str, Any]]
    read: dict[str, int]  # worker → bytes of its file that were read
    last: bool


def job_log(store: Store, root: Path, job_id: str, *, follow: bool = False) -> Iterator[dict[str, Any]]:
    """Lines of the job, oldest first; with `follow`, then each new one until the job has ended."""
    read: dict[str, int] = {}
    while True:
        part = read_part(store, root, job_id, read)
        read = part.read
        yield from part.lines
        if part.last or not follow:
            return
        time.sleep(_LOOK_EVERY)


def read_part(store: Store, root: Path, job_id: str, read: Mapping[str, int], limit: int | None = None) -> LogPart:
    """What stands behind the part that left off at `read`: all, or up to `limit` lines of each worker."""
    ended = store.job(job_id).state.ended  # asked before reading, so that the last lines are not missed
    now, lines, cut = dict(read), list[dict[str, Any]](), False
    for worker in store.job_workers(job_id):
        found, now[worker] = _lines(worker_log(root, worker), read.get(worker, 0), job_id, limit)
        cut = cut or len(found) == limit
        lines += found
    return LogPart(sorted(lines, key=_time), now, ended and not cut)


def last_words(root: Path, worker: str, job_id: str, shard: int, attempt: int) -> str:
    """What the log of a dead worker says last of this attempt: a line's message, or the headline of a crash or hang and
    where the current thread stood, or else the main one, which is the last.

    Empty if it says nothing, or lies elsewhere.
    """
    try:
        with worker_log(root, worker).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return ""
    said, key = "", {"job": job_id, "shard": shard, "attempt": attempt}
    for number, raw in enumerate(lines):
        if raw.startswith(_HEADLINES):
            words = b"\n".join(lines[number:]).decode(errors="replace")
            places = list(_STOOD_AT.finditer(words))
            place = next((place for place in places if place["current"]), places[-1] if places else None)
            return (raw.decode(errors="replace") + (f" at {place['frame']}" if place else ""))[:_SHOWN]
        line = _parsed(raw)
        if line.items() >= key.items():
            said = str(line.get("message"))[:_SHOWN]
    return said


def _lines(path: Path, offset: int, job_id: str, limit: int | None) -> tuple[list[dict[str, Any]], int]:
    """The job's lines after `offset`, no more than `limit`, and where the last whole line that was read ends."""
    found: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for raw in file:
                if not raw.endswith(b"\n") or len(found) == limit:
                    break  # still being written, or enough
                offset += len(raw)
                found += _of_job(job_id, [raw])
    except FileNotFoundError:  # a worker of a machine whose results folder was not shared, or logs that were cleaned
        pass
    return found, offset


def _of_job(job_id: str, raw_lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The job's among these lines. Only one that holds its id somewhere is parsed."""
    for raw in raw_lines:
        if job_id.encode() in raw and (line := _parsed(raw)).get("job") == job_id:
            yield line


def _time(line: dict[str, Any]) -> float:
    return float(line.get("time", 0))


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except ValueError:  # a worker that died mid-line
        return {}
    return line if isinstance(line, dict) else {}


def tail(store: Store, root: Path, job_id: str, count: int) -> list[dict[str, Any]]:
    """The job's last lines, at most so many, oldest first; only the end of each worker's file is looked at."""
    lines: list[dict[str, Any]] = []
    for worker in store.job_workers(job_id):
        lines += _last_lines(worker_log(root, worker), job_id, count)
    return sorted(lines, key=_time)[-count:]


def _last_lines(path: Path, job_id: str, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    window, start = _TAIL, 1
    while start > 0 and len(found) < count and window <= _FURTHEST:
        try:
            with path.open("rb") as file:
                start = max(0, file.seek(0, 2) - window)
                file.seek(start)
                raw_lines = file.read().split(b"\n")[1 if start else 0 : -1]  # whole lines only
        except FileNotFoundError:  # as in `_lines`
            return []
        found = list(_of_job(job_id, raw_lines))
        window *= 8
    return found[-count:]
