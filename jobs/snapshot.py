"""The resolved prompts of a job, as they were when it was submitted: immutable, in one or more Parquet segments.

A segment holds whole shards, so that a shard never crosses a segment. The digest is the sha256 over one canonical JSON
line a prompt: it depends on what was submitted and in which order, and on no Parquet library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jobs.files import flush, make_folder, writing
from jobs.parquet import ROW_GROUP, SegmentWriter, read_segment
from jobs.paths import JobPaths
from jobs.records import ShardRange
from jobs.spec import PromptRow

SEGMENT_ROWS = 65_536
_GROUP_CHARACTERS = 8 * 2**20  # of canonical JSON, after which a row group is written even if it has few rows
_FIELDS = (*PromptRow.model_fields, "error")
_Given = TypeVar("_Given", PromptRow, "PromptRow | BadPrompt")
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One prompt. Exactly one of `prompt`, `messages`, `prompt_token_ids` is given."""

    prompt_index: int
    custom_id: str  # the user's, or the index as text
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt_token_ids: list[int] | None = None
    answer: str | None = None
    response: str | None = None
    response_token_ids: list[int] | None = None
    error: str | None = None  # why it is no prompt, of what came in the place of one; nothing else is given then

    @property
    def content(self) -> str | list[dict[str, Any]] | list[int]:
        """The prompt in the form in which it was given."""
        return next(c for c in (self.prompt, self.messages, self.prompt_token_ids) if c is not None)


@dataclass(frozen=True, slots=True)
class BadPrompt:
    """What came in a stream in the place of a prompt and is none."""

    error: str


Item = PromptRow | BadPrompt
"""What comes in a stream."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was written: the rows of each segment, and the digest of them all."""

    digest: str
    segments: tuple[int, ...]

    @property
    def num_prompts(self) -> int:
        return sum(self.segments)

    def shards(self, shard_size: int) -> Iterator[ShardRange]:
        """Shards of `shard_size` prompts in order, the last one smaller."""
        first = 0
        for segment, rows in enumerate(self.segments):
            yield from shard_ranges(segment, rows, first, shard_size)
            first += rows


def shard_ranges(segment: int, rows: int, first_prompt: int, shard_size: int) -> Iterator[ShardRange]:
    """The shards of one segment of so many rows, the last one smaller."""
    for start in range(0, rows, shard_size):
        yield ShardRange(segment, start, min(start + shard_size, rows), first_prompt + start)


def write_snapshot(paths: JobPaths, rows: Iterable[PromptRow], *, shard_size: int) -> Snapshot:
    """Writes the prompts under the job's folder, durably, in memory bounded by a row group.

    Args:
        rows: the prompts in order; an exception of the iterable passes through and leaves the folder half-written.
        shard_size: prompts per shard.

    Raises:
        ResultsError: the folder cannot be written.
    """
    per_segment = max(shard_size, SEGMENT_ROWS // shard_size * shard_size)
    digest, segments = hashlib.sha256(), [0]
    make_folder(paths.prompts)
    writer = SegmentWriter(paths.segment(0))
    for group in _groups(rows, per_segment):
        if segments[-1] == per_segment:
            writer.close()
            segments.append(0)
            writer = SegmentWriter(paths.segment(len(segments) - 1))
        first = sum(segments)
        digest.update("".join(line for _, line in group).encode())
        writer.write([_stored(first + i, row) for i, (row, _) in enumerate(group)])
        segments[-1] += len(group)
    writer.close()
    with writing(paths.prompts):
        flush(paths.prompts)
    return Snapshot(digest.hexdigest(), tuple(segments))


def write_segment(path: Path, rows: Iterable[Item], first_prompt: int) -> None:
    """Writes one segment whose first row has this prompt_index, durably but for its name. Raises ResultsError."""
    writer = SegmentWriter(path)
    for group in _groups(rows, SEGMENT_ROWS):
        writer.write([_stored(first_prompt + i, row) for i, (row, _) in enumerate(group)])
        first_prompt += len(group)
    writer.close()


def read_rows(paths: JobPaths, segment: int, start: int, stop: int) -> list[SnapshotRow]:
    """Rows [start, stop) of a segment, a shard's prompts. Raises ResultsError if they cannot be read."""
    return [_row(data) for data in read_segment(paths.segment(segment), start, stop)]


def read_all(paths: JobPaths, segments: int) -> Iterator[SnapshotRow]:
    """All prompts of a job whose snapshot has this many segments, one row group in memory."""
    return map(_row, _stored_rows(paths, segments))


def digest_of(paths: JobPaths, segments: int) -> str:
    """The digest of the prompts that stand in these segments now. Raises ResultsError."""
    digest = hashlib.sha256()
    for data in _stored_rows(paths, segments):
        digest.update(_canonical(_fields(data)).encode())
    return digest.hexdigest()


def _stored_rows(paths: JobPaths, segments: int) -> Iterator[dict[str, Any]]:
    for segment in range(segments):
        yield from read_segment(paths.segment(segment), 0)


def _groups(rows: Iterable[_Given], per_segment: int) -> Iterator[list[tuple[_Given, str]]]:
    """Row groups of (row, canonical line) that end where a segment ends."""
    group: list[tuple[_Given, str]] = []
    size = 0
    for count, row in enumerate(rows, start=1):
        line = _canonical(_given(row))
        group.append((row, line))
        size += len(line)
        if len(group) == ROW_GROUP or size >= _GROUP_CHARACTERS or count % per_segment == 0:
            yield group
            group, size = [], 0
    if group:
        yield group


def _canonical(fields: dict[str, Any]) -> str:
    """Fields that are given, in their order; messages as the user ordered them, since templates may show the order."""
    return _encode({name: value for name, value in fields.items() if value is not None}) + "\n"


def _given(row: Item) -> dict[str, Any]:
    return {name: getattr(row, name, None) for name in _FIELDS}


def _stored(index: int, row: Item) -> dict[str, Any]:
    fields = _given(row)
    messages = None if fields["messages"] is None else _encode(fields["messages"])
    return {**fields, "prompt_index": index, "messages": messages}


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of PromptRow, in its order, from a stored row; an older one has no `error`."""
    fields = {name: data.get(name) for name in _FIELDS}
    if fields["messages"] is not None:
        fields["messages"] = json.loads(fields["messages"])
    return fields


def _row(data: dict[str, Any]) -> SnapshotRow:
    fields = _fields(data)
    if fields["custom_id"] is None:
        fields["custom_id"] = str(data["prompt_index"])
    return SnapshotRow(prompt_index=data["prompt_index"], **fields)
