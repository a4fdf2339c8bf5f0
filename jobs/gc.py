"""Removing what no job needs. A file goes only if no row can ever name it again, whatever else happens meanwhile.

· A file of a shard, temporary or whole: its shard is terminal, or past the file's attempt, and does not name it.
  Attempts only rise, and only the open attempt commits: a file that may go once may go for ever.
· A file in `sidecars` that no row names, untouched for 24 hours: it is written just before its row, or was replaced.
· A segment of prompts, temporary or whole: its job is sealed, and no shard is over it. Nothing is added to such a job.
· A folder without a row, untouched for 24 hours: a submit that was killed. It writes its last file just before the
  row, so a folder that old will get none.
· A deleted job (tombstone): first its files, then its row. A job past its ttl is deleted so; one without a ttl never.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from jobs.errors import JobNotFound
from jobs.files import final_name, writing
from jobs.manifest import ensure_manifest
from jobs.paths import JobPaths
from jobs.records import Shard
from jobs.settings import Settings
from jobs.store import Store
from jobs.store_id import check_root

ORPHAN_AGE = 24 * 3600.0  # seconds
_ATTEMPT_FILE = re.compile(r"shard-(?P<shard>\d{6,})-a(?P<attempt>\d{3,})-[0-9a-f]{8}(-[0-9a-f]{64})?\.(parquet|jsonl)")
_SIDECAR_FILE = re.compile(r"[a-z]+-\w+-shard-\d{6,}-[0-9a-f]{8}\.parquet")


@dataclass(frozen=True, slots=True)
class Collected:
    """How much was removed, or would be."""

    files: int  # of shards
    folders: int  # of jobs
    bytes: int
    expired: int = 0  # of the jobs: those past their ttl


def collect(store: Store, settings: Settings, *, dry_run: bool = False) -> Collected:
    """Removes what no job needs from the results root, jobs past their ttl, and rewrites manifests that are behind.

    With `dry_run` it changes nothing. Raises ResultsError if the root is not this database's or cannot be written.
    """
    root = settings.results
    if not root.exists():
        return Collected(0, 0, 0)
    check_root(store, root)
    expired = store.past_ttl() if dry_run else store.tombstone_past_ttl()
    folders = [JobPaths(root, path.name) for path in _entries(root / "jobs") if path.is_dir()]
    tombstoned = {job.id for job in store.tombstoned()}.union(expired)
    known = set(store.job_ids())  # after the folders were listed, so that a folder's row cannot come in between
    orphans = [p for p in folders if p.job_id not in known | tombstoned]
    sidecars = [path for p in folders if p.job_id in known - tombstoned for path in _unnamed_sidecars(store, p)]
    now = _clock_of(root) if orphans or sidecars else 0.0
    doomed = [p for p in folders if p.job_id in tombstoned] + [p for p in orphans if _untouched(p.folder, now)]
    files = [path for p in folders if p.job_id in known - tombstoned for path in _superseded(store, p)]
    files += [path for path in sidecars if now - _modified(path) > ORPHAN_AGE]
    size = sum(_size(path) for path in files) + sum(_size(path) for p in doomed for path in _inside(p.folder))
    if not dry_run:
        with writing(root / "jobs"):
            for path in files:
                path.unlink(missing_ok=True)
            for paths in doomed:
                _remove(paths)
        for job_id in tombstoned:
            store.purge(job_id)
        for job_id in store.jobs_with_old_manifest():
            with suppress(JobNotFound):  # deleted meanwhile
                ensure_manifest(store, settings, job_id)
    return Collected(len(files), len(doomed), size, len(expired))


def delete(store: Store, settings: Settings, job_id: str) -> None:
    """Deletes an ended job: results, prompts, rows. What is cut short here, `collect` ends.

    Raises WrongState, JobNotFound, or ResultsError if the root is not this database's or cannot be written.
    """
    check_root(store, settings.results)
    store.tombstone(job_id)
    with writing(settings.results / "jobs"):
        _remove(JobPaths(settings.results, job_id))
    store.purge(job_id)


def _remove(paths: JobPaths) -> None:
    while paths.folder.exists():
        with suppress(FileNotFoundError):  # somebody else collects as well
            shutil.rmtree(paths.folder)


def _superseded(store: Store, paths: JobPaths) -> Iterator[Path]:
    """Files of attempts, and of a stream's pieces, that can no longer be committed and were not."""
    files = [path for folder in (paths.shards, paths.errors) for path in _entries(folder)]
    pieces = _entries(paths.prompts)
    shards = {shard.index: shard for shard in store.shards(paths.job_id)}
    if _stray(pieces, paths, shards.values()) and _is_sealed(store, paths.job_id):
        yield from _stray(pieces, paths, store.shards(paths.job_id))  # that are all only now: the seal came last
    for path in files:
        match = _ATTEMPT_FILE.fullmatch(final_name(path.name))
        shard = shards.get(int(match["shard"])) if match else None
        if match and shard and _past(shard, int(match["attempt"])) and not _names(shard, path):
            yield path


def _stray(pieces: Iterable[Path], paths: JobPaths, shards: Iterable[Shard]) -> list[Path]:
    """Those of a stream's pieces that none of these shards is over."""
    named = {paths.segment(shard.segment) for shard in shards}
    return [path for path in pieces if path not in named]


def _unnamed_sidecars(store: Store, paths: JobPaths) -> Iterator[Path]:
    """Of measurements that were replaced, or whose row was never written; or is just now: they must be old to go."""
    files = [path for path in _entries(paths.sidecars) if _SIDECAR_FILE.fullmatch(final_name(path.name))]
    named = store.sidecar_files(paths.job_id) if files else set()
    return (path for path in files if f"{paths.sidecars.name}/{path.name}" not in named)


def _is_sealed(store: Store, job_id: str) -> bool:
    try:
        return store.job(job_id).sealed
    except JobNotFound:  # deleted meanwhile
        return False


def _past(shard: Shard, attempt: int) -> bool:
    return shard.state.ended or attempt < shard.attempt


def _names(shard: Shard, path: Path) -> bool:
    return f"{path.parent.name}/{path.name}" in (shard.file, shard.errors_file)


def _clock_of(root: Path) -> float:
    """Now, by the clock that stamps the files: a file server's, or one that was set, may be days away from ours."""
    with writing(root), TemporaryFile(dir=root) as fresh:
        return os.fstat(fresh.fileno()).st_mtime


def _untouched(folder: Path, now: float) -> bool:
    newest = max(_modified(path) for path in (folder, *_inside(folder)))
    return now - newest > ORPHAN_AGE


def _inside(folder: Path) -> list[Path]:
    """Everything in a folder, or nothing if that goes while it is read."""
    try:
        return list(folder.rglob("*"))
    except FileNotFoundError:
        return []


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a temporary file that was renamed meanwhile: somebody is at work
        return math.inf
