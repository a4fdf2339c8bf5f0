"""Sidecars on disk: a later measurement of a shard's sequences in a file of its own, and how readers see it.

A sidecar has the columns prompt_index, sample_index, and its measurement under the name of its kind (`reward`: float64,
null where there is no value), one row for each of the shard's, in their order. Readers see it as one more column of the
sequences, `reward_math_answer`, say; of shards that were not measured it is null. Shards' files are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import ResultsError, UsageError, WrongState
from jobs.files import flush, writing
from jobs.parquet import read_columns, read_table, write_table
from jobs.paths import JobPaths
from jobs.records import Sidecar
from jobs.settings import Settings
from jobs.store import Store

if TYPE_CHECKING:
    from jobs.results import ResultFile

REWARD = "reward"  # the kind of sidecar that holds rewards
RESAMPLING, ROUND = "resampling", "round"  # kind and name of the one that says of which round a sequence is
_KEYS = ("prompt_index", "sample_index")


@dataclass(frozen=True, slots=True)
class Added:
    """A column that readers see beside those of a shard's file. `path` None: this shard has nothing of it."""

    column: str
    path: Path | None = None
    inside: str = ""  # the column's name in that file
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A later measurement of one shard's sequences: a value for each, in the order of its file, or None."""

    job_id: str
    kind: str
    name: str
    shard: int
    of_sha256: str  # of the shard's file
    values: Sequence[float | None]


def write_sidecar(paths: JobPaths, source: Path, measured: Measured) -> Sidecar:
    """Write a measurement, durably; the record of it is given back, and still to be stored.

    `source` is the shard's file. Raises ResultsError if the folder cannot be written, UsageError if there is not one
    value for each of its rows.
    """
    values, name = measured.values, measured.name
    keys = read_columns(source, _KEYS)
    if len(keys) != len(values):
        raise UsageError(
            f"shard {measured.shard} has {len(keys):,} sequences, and {len(values):,} values came; give one for each"
        )
    file = JobPaths.sidecar_file(measured.kind, name, measured.shard)
    with writing(paths.sidecars):  # and not its parents: a job that was deleted meanwhile must not come back
        paths.sidecars.mkdir(exist_ok=True)
        flush(paths.folder)
    written = write_table(paths.resolve(file), keys.append_column(measured.kind, pa.array(values, pa.float64())))
    return Sidecar(
        job_id=measured.job_id,
        kind=measured.kind,
        name=name,
        shard=measured.shard,
        of_sha256=measured.of_sha256,
        file=file,
        sha256=written.sha256,
        bytes=written.bytes,
        rows=len(values),
        unjudged=sum(value is None for value in values),
    )


def keep_sidecar(store: Store, settings: Settings, source: Path, measured: Measured) -> Sidecar:
    """Write and store a measurement of a shard's present file, which is `source`.

    Raises WrongState if the shard has another file by then; ResultsError, JobNotFound.
    """
    paths = JobPaths(settings.results, measured.job_id)
    sidecar = write_sidecar(paths, source, measured)
    if not store.put_sidecar(sidecar):
        paths.resolve(sidecar.file).unlink(missing_ok=True)
        raise WrongState(
            f"shard {measured.shard} of job {measured.job_id} has no file, or another than the one that was measured: "
            "read the job again"
        )
    return sidecar


def added_of(columns: Iterable[str], here: Iterable[Sidecar], place: Callable[[Sidecar], Path]) -> tuple[Added, ...]:
    """What a shard shows of the job's added `columns`; `here` are its sidecars, and `place` says where each lies."""
    known = {sidecar.column: Added(sidecar.column, place(sidecar), sidecar.kind, sidecar.sha256) for sidecar in here}
    return tuple(known.get(column, Added(column)) for column in columns)


def values_of(file: ResultFile, added: Added) -> pa.Array:
    """[rows of the shard] the values of an added column, null where there is none. Raises ResultsError."""
    if added.path is None:
        return pa.nulls(file.sequences, pa.float64())
    values = read_columns(added.path, [added.inside])[added.inside].combine_chunks()
    if len(values) != file.sequences:
        raise ResultsError(
            f"{added.path} is damaged: it has {len(values):,} values for {file.sequences:,} sequences; judge them again"
        )
    return values


def with_added(
    file: ResultFile, rows: Iterator[dict[str, Any]], positions: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows at these positions in a shard's file, by default all, each with the added columns.

    Raises ResultsError.
    """
    if not file.added:
        return rows
    names = [added.column for added in file.added]
    columns = [_picked(values_of(file, added), positions) for added in file.added]
    values = zip(*columns, strict=True)
    return (row | dict(zip(names, found, strict=True)) for row, found in zip(rows, values, strict=True))


def of_prompt(file: ResultFile, prompt_index: int) -> dict[int, dict[str, float | None]]:
    """For each sample of one prompt of a shard's file its added columns; none of those that this shard has no file of.

    Raises ResultsError.
    """
    found: dict[int, dict[str, float | None]] = {}
    for added in file.added:
        if added.path is not None:
            table = read_columns(added.path, [*_KEYS, added.inside])
            for row in table.filter(pc.equal(table["prompt_index"], prompt_index)).to_pylist():
                found.setdefault(row["sample_index"], {})[added.column] = row[added.inside]
    return found


def _picked(values: pa.Array, positions: Sequence[int] | None) -> list[Any]:
    found: list[Any] = values.to_pylist()
    return found if positions is None else [found[position] for position in positions]


def table_of(file: ResultFile, schema: pa.Schema) -> pa.Table:
    """All rows of a shard's file, which has this schema, with the added columns, in memory. Raises ResultsError."""
    table = read_table([file.path], schema)
    for added in file.added:
        table = table.append_column(added.column, values_of(file, added))
    return table
