"""The summaries of the jobs that were looked at last, each brought up to date when it is asked for.

What was read once is not read again: a look adds the shards that were committed since the last. Whoever asks while
another adds waits for that one and gets what it made. A job that is too large for one look grows from look to look.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from jobs.errors import ResultsError
from jobs.parquet import read_pieces
from jobs.paths import JobPaths
from jobs.records import Committed, Job
from jobs.store import Store
from jobs.summary import Summary, columns_for, summarise

_KEPT = 16  # summaries; one of responses of 4,000 tokens takes 6 MB
_PATIENCE = 2.0  # seconds after which a look ends with what there is
_TOKENS = 1_000_000  # that one thread adds in one go
_THREADS = min(os.cpu_count() or 1, 4)


@dataclass(slots=True)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    looks: int = 0
    revision: int = -1  # of the job, when its shards were listed last
    added: set[Committed] = field(default_factory=set)
    left: list[Committed] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)


class Summaries:
    """Summaries by job and measurements."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, tuple[str, ...]], _Entry] = OrderedDict()

    def of(self, store: Store, paths: JobPaths, job: Job, measured: tuple[str, ...]) -> Summary:
        """The job's committed shards together; of a large job those that could be read so far (`Summary.shards`).

        Args:
            store: the database that has the job.
            paths: of the job's folder.
            job: as the database has it now.
            measured: at most a log-probability and an entropy column, both of one distribution.

        Raises:
            ResultsError: a file is missing or damaged.
            StoreError: the database does not answer.
        """
        entry = self._entry((job.id, measured))
        looks = entry.looks
        with entry.lock:
            if entry.looks == looks:  # else another has looked while this one waited
                _list(entry, store, job)
                _add(entry, paths, measured)
                entry.looks += 1
            return entry.summary

    def _entry(self, key: tuple[str, tuple[str, ...]]) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            if len(self._entries) > _KEPT:
                self._entries.popitem(last=False)
            return entry


def _list(entry: _Entry, store: Store, job: Job) -> None:
    """Find what was committed since the last look; start anew if something that was added is there no more."""
    if entry.revision == job.revision:
        return
    committed = store.committed(job.id)
    if not entry.added.issubset(committed):
        entry.added, entry.summary = set(), Summary()
    entry.left = [item for item in committed if item not in entry.added]
    entry.revision = job.revision


def _add(entry: _Entry, paths: JobPaths, measured: tuple[str, ...]) -> None:
    if not entry.left:
        return
    columns, until = columns_for(measured), time.monotonic() + _PATIENCE

    def read(group: list[Committed]) -> Summary:
        try:
            pieces = read_pieces((paths.resolve(item.file) for item in group), columns)
            return summarise(pieces, measured, shards=len(group))
        except ValueError as error:
            place = f"shards {group[0].shard} to {group[-1].shard} in {paths.shards}"
            raise ResultsError(f"{place} are damaged: {error}; submit the job again for whole ones") from None

    groups = _groups(entry.left)
    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(islice(groups, 2 * _THREADS)):
            entry.summary = sum(pool.map(read, some), entry.summary)
            entry.added.update(item for group in some for item in group)
            if time.monotonic() > until:
                break
    entry.left = [item for item in entry.left if item not in entry.added]


def _groups(items: list[Committed]) -> Iterator[list[Committed]]:
    """Runs of shards that have about `_TOKENS` together."""
    group: list[Committed] = []
    tokens = 0
    for item in items:
        group.append(item)
        tokens += item.tokens
        if tokens >= _TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group
