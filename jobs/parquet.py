"""Parquet, in this one place: the rows of a shard and the rows of a prompt snapshot.

A shard's file holds one row a sequence in order of (prompt_index, sample_index); a measurement that the job did not ask
for is null, and a diagnostic has no column then. Per-token quantities are float32, of log-probabilities and entropies
in nats. A file is there whole or not at all.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.diagnostics import ALTERNATIVES, DIAGNOSTICS
from jobs.files import flush, reading, replacing, sha256_of, writing

_IDS, _NATS = pa.list_(pa.int32()), pa.list_(pa.float32())

SHARD_SCHEMA = pa.schema(
    {
        "prompt_index": pa.int64(),
        "sample_index": pa.int32(),
        "custom_id": pa.string(),
        "prompt": pa.string(),
        "response": pa.string(),
        "answer": pa.string(),
        "prompt_ids": _IDS,
        "response_ids": _IDS,
        "logprobs": _NATS,
        "entropies": _NATS,
        "sampling_logprobs": _NATS,
        "sampling_entropies": _NATS,
        "finish_reason": pa.string(),
        "stop_offset": pa.int32(),
        "token_ends": _IDS,  # characters of `response` up to the end of each token
    }
)
"""Columns of a shard's file, and of an export; those of diagnostics may follow."""

_DIAGNOSTICS = dict.fromkeys(DIAGNOSTICS, _NATS) | dict(
    zip(ALTERNATIVES, (pa.list_(_IDS), pa.list_(_NATS)), strict=True)
)

SNAPSHOT_SCHEMA = pa.schema(
    {
        "prompt_index": pa.int64(),
        "custom_id": pa.string(),
        "prompt": pa.string(),
        "messages": pa.string(),  # JSON text
        "prompt_token_ids": _IDS,
        "answer": pa.string(),
        "response": pa.string(),
        "response_token_ids": _IDS,
        "error": pa.string(),  # of what came in the place of a prompt and is none
    }
)
"""Columns of a snapshot's segment."""

ROW_GROUP = 1024  # rows, so that a reader of one shard's prompts touches few others
_FEW = 64  # rows that a reader of one prompt decodes at once
_PIECE = 8 * 2**20  # bytes that a reader of columns holds at once

_SURROGATE = re.compile("[\ud800-\udfff]")


def schema_with(names: Collection[str]) -> pa.Schema:
    """SHARD_SCHEMA, and behind it the diagnostics among these names, in an order of their own."""
    return pa.schema([*SHARD_SCHEMA, *((name, kind) for name, kind in _DIAGNOSTICS.items() if name in names)])


class Written(NamedTuple):
    """A file that is durable on disk."""

    sha256: str  # hex
    bytes: int


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Written:
    """Writes a shard's rows, durably and in order of (prompt_index, sample_index).

    Args:
        path: from `JobPaths.attempt_files`; its folder exists.
        rows: one mapping a sequence with the keys of SHARD_SCHEMA; a missing key is null. Diagnostics among the keys
            become columns. Per-token values may be numpy arrays. A lone surrogate in a text, which no file can hold,
            becomes U+FFFD; offsets stay true.

    Raises:
        ResultsError: the folder cannot be written, the disk is full.
    """
    ordered = sorted(rows, key=lambda row: (row["prompt_index"], row["sample_index"]))
    schema = schema_with({name for row in ordered for name in row})
    with replacing(path) as temporary:
        with _writer(temporary, schema) as writer:
            for group in batches(ordered, ROW_GROUP):
                writer.write_table(_table(group, schema))
        size = temporary.stat().st_size
        digest = sha256_of(temporary)
    return Written(digest, size)


def read_rows(path: Path, *, arrays: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a shard's file or an export as dicts, one by one.

    Lists are Python lists, or with `arrays` numpy arrays (int32 ids, float32 nats). Raises ResultsError.
    """
    with reading(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP):
            if not arrays:
                yield from batch.to_pylist()
                continue
            yield from _dicts(batch)


def read_prompt(path: Path, prompt_index: int) -> list[dict[str, Any]]:
    """The rows of one prompt in a shard's file, with numpy arrays; reads only the row groups that may hold it.

    Raises ResultsError.
    """
    rows: list[dict[str, Any]] = []
    with reading(path), pq.ParquetFile(path) as file:
        groups = [g for g in range(file.num_row_groups) if _may_hold(file.metadata.row_group(g), prompt_index)]
        for batch in file.iter_batches(_FEW, row_groups=groups):
            found = batch.filter(pc.equal(batch["prompt_index"], prompt_index))
            rows += _dicts(found)
            if rows and found.num_rows < batch.num_rows and batch["prompt_index"][-1].as_py() != prompt_index:
                break  # rows come in order
    return rows


def read_pieces(paths: Iterable[Path], columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of all rows of these shard files, in tables of some megabytes each. Raises ResultsError."""
    waiting: list[pa.Table] = []
    size = 0
    for path in paths:
        with reading(path), pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                # One thread: whoever reads many files has more to do at once than there are cores.
                waiting.append(file.read_row_group(group, columns=list(columns), use_threads=False))
                size += waiting[-1].nbytes
                if size >= _PIECE:
                    yield pa.concat_tables(waiting)
                    waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def read_table(paths: Sequence[Path], schema: pa.Schema = SHARD_SCHEMA) -> pa.Table:
    """All rows of these shard files, in their order, as one Arrow table in memory; a column that a file lacks is null.

    Raises ResultsError.
    """
    tables = [schema.empty_table()]
    for path in paths:
        with reading(path):
            tables.append(pq.read_table(path, schema=schema))
    return pa.concat_tables(tables)


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """These columns of all rows of a shard's file, as one Arrow table in memory. Raises ResultsError."""
    with reading(path):
        return pq.read_table(path, columns=list(columns))


def column_names(path: Path) -> list[str]:
    """The columns of a shard's file, in their order. Raises ResultsError."""
    with reading(path):
        names: list[str] = pq.read_schema(path).names
        return names


def write_table(path: Path, table: pa.Table) -> Written:
    """Writes a table of numbers, durably; its folder exists. Raises ResultsError."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        size, digest = temporary.stat().st_size, sha256_of(temporary)
    return Written(digest, size)


def read_some(path: Path, columns: Sequence[str], start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Rows [start, stop) of a shard's file as dicts of these columns, some at a time. Raises ResultsError."""
    with reading(path), pq.ParquetFile(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if start < end and first < stop:
                for batch in file.iter_batches(_FEW, row_groups=[group], columns=list(columns)):
                    low, high = max(start - first, 0), min(stop - first, len(batch))
                    if low < high:
                        yield from batch.slice(low, high - low).to_pylist()
                    first += len(batch)
            first = end


def pick_rows(path: Path, positions: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows at these ascending positions in a shard's file, as dicts; decodes only the row groups they lie in.

    Positions beyond the end are left out. Raises ResultsError.
    """
    with reading(path), pq.ParquetFile(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if bisect_left(positions, first) < bisect_left(positions, end):
                for batch in file.iter_batches(_FEW, row_groups=[group]):
                    here = slice(bisect_left(positions, first), bisect_left(positions, first + len(batch)))
                    for position in positions[here]:
                        yield from batch.slice(position - first, 1).to_pylist()
                    first += len(batch)
            first = end


def concatenate(tables: Iterable[pa.Table], target: Path, schema: pa.Schema = SHARD_SCHEMA) -> None:
    """One file at `target` with the rows of all these tables, in their order. Raises ResultsError."""
    with replacing(target) as temporary, _writer(temporary, schema) as writer:
        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(table)
            if sum(len(table) for table in waiting) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


class SegmentWriter:
    """Writes one segment of a snapshot, a row group at a time, straight under its name.

    No reader knows of a segment before its job's row is committed, so it needs no temporary name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._writer = _writer(path, SNAPSHOT_SCHEMA)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rows, with the keys of SNAPSHOT_SCHEMA, as one row group. Raises ResultsError."""
        with writing(self._path):
            self._writer.write_table(_table(rows, SNAPSHOT_SCHEMA))

    def close(self) -> None:
        """Writes the footer and brings the file to the disk. Raises ResultsError."""
        with writing(self._path):
            self._writer.close()
            flush(self._path)


def read_segment(path: Path, start: int, stop: int | None = None) -> Iterator[dict[str, Any]]:
    """Rows [start, stop) of a segment, or all from `start`; reads only the row groups they lie in.

    Raises ResultsError if the segment is missing, damaged or too short.
    """
    with reading(path), pq.ParquetFile(path) as file:
        first, end = 0, file.metadata.num_rows if stop is None else stop
        if end > file.metadata.num_rows:
            raise ValueError(f"has {file.metadata.num_rows} rows, not the {end} that the job was submitted with")
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            low, high = max(start - first, 0), min(end - first, rows)
            if low < high:
                yield from file.read_row_group(group).slice(low, high - low).to_pylist()
            first += rows


def as_numpy(array: Any) -> np.ndarray[Any, Any]:
    """An Arrow array of numbers as numpy's, without the second that importing pandas for it would take."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.to_numpy(zero_copy_only=False) if array.null_count else np.from_dlpack(array)


def batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


def _writer(path: Path, schema: pa.Schema) -> Any:
    def of(kind: pa.DataType) -> list[str]:
        lists = {kind: "list.element", pa.list_(kind): "list.element.list.element"}
        return [f"{field.name}.{lists[field.type]}" for field in schema if field.type in lists]

    floats, ids = of(_NATS), of(_IDS)
    texts = [field.name for field in schema if field.type == pa.string()]
    return pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=ids + texts, use_byte_stream_split=floats or False
    )


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.type == pa.string():
            values = [_encodable(value) for value in values]
        columns.append(pa.array(values, type=field.type))
    return pa.table(columns, schema=schema)


def _encodable(text: str | None) -> str | None:
    """The text with each lone surrogate replaced by one character, so that offsets into it stay true."""
    if text is None or text.isascii() or not _SURROGATE.search(text):
        return text
    return _SURROGATE.sub("\ufffd", text)


def _may_hold(group: Any, prompt_index: int) -> bool:
    """Whether a row group's statistics leave room for rows of this prompt."""
    statistics = group.column(SHARD_SCHEMA.get_field_index("prompt_index")).statistics
    return statistics is None or not statistics.has_min_max or statistics.min <= prompt_index <= statistics.max


def _dicts(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch, lists as numpy arrays."""
    columns = [_arrays(column) if pa.types.is_list(column.type) else column.to_pylist() for column in batch]
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _arrays(column: Any) -> list[Any]:
    """A list column as numpy arrays that share one buffer: [tokens], or of lists [tokens, k]."""
    inner = column.values
    values, ends = _of_tokens(inner) if pa.types.is_list(inner.type) else as_numpy(inner), column.offsets.to_pylist()
    valid = column.is_valid().to_pylist()
    return [values[ends[i] : ends[i + 1]] if valid[i] else None for i in range(len(column))]


def _of_tokens(lists: Any) -> np.ndarray[Any, Any]:
    """Lists of k values each as [lists, k]."""
    ends = as_numpy(lists.offsets)
    return as_numpy(lists.values)[ends[0] : ends[-1]].reshape(len(lists), int(ends[1] - ends[0]) if len(lists) else 0)
