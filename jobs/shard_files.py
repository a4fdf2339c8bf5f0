"""What one attempt leaves on disk: its rows and its prompt errors, durable, and the record of them that it commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.parquet import write_errors, write_rows
from jobs.paths import JobPaths
from jobs.records import Shard, ShardResult


def write_attempt(
    paths: JobPaths,
    shard: Shard,
    rows: Sequence[Mapping[str, Any]],
    errors: Sequence[Mapping[str, Any]],
    details: dict[str, Any],
) -> ShardResult:
    """Write the files of a shard's running attempt under names that no other claim has.

    Args:
        rows: as `jobs.parquet.write_rows` takes them, in any order.
        errors: as `jobs.parquet.write_errors` takes them; no file if there are none.
        details: versions and settings for the manifest.

    Raises:
        ResultsError: the folder cannot be written, the disk is full.
    """
    file, errors_file = paths.attempt_files(shard.index, shard.attempt)
    written = write_rows(paths.resolve(file), rows)
    if errors:
        write_errors(paths.resolve(errors_file), errors)
    return ShardResult(
        file=file,
        errors_file=errors_file if errors else None,
        sha256=written.sha256,
        bytes=written.bytes,
        sequences=len(rows),
        tokens=sum(len(row["response_ids"]) for row in rows),
        prompt_errors=len(errors),
        details=details,
    )
