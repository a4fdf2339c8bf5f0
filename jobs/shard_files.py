"""What one attempt leaves on disk: its rows and its prompt errors, durable, and the record of them that it commits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.files import replacing
from jobs.jsonl import line
from jobs.parquet import write_rows
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
        errors: prompt_index, sample_index (null), custom_id, error; no file if there are none.
        details: versions and settings for the manifest.

    Raises:
        ResultsError: the folder cannot be written, the disk is full.
    """
    file, errors_file = paths.attempt_files(shard.index, shard.attempt)
    written = write_rows(paths.resolve(file), rows)
    return ShardResult(
        file=file,
        errors_file=_write_errors(paths, errors_file, errors) if errors else None,
        sha256=written.sha256,
        bytes=written.bytes,
        sequences=len(rows),
        tokens=sum(len(row["response_ids"]) for row in rows),
        prompt_errors=len(errors),
        details=details,
    )


def _write_errors(paths: JobPaths, name: str, errors: Sequence[Mapping[str, Any]]) -> str:
    """Writes the errors durably, in order of their prompts; returns the name with their digest in it."""
    ordered = sorted(errors, key=lambda error: int(error["prompt_index"]))
    content = "".join(map(line, ordered)).encode("utf-8", "replace")
    name = paths.with_digest(name, hashlib.sha256(content).hexdigest())
    with replacing(paths.resolve(name)) as temporary:
        temporary.write_bytes(content)
    return name
