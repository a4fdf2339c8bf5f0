"""JSON lines on disk: the prompt errors of an attempt, and exports. UTF-8, one object a line.

JSON has no infinities: what is not finite (a log-probability outside the nucleus) is written as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.files import reading, replacing


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows, whole or not at all, and returns how many. Raises ResultsError."""
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        for row in rows:
            file.write(line(row))
            count += 1
    return count


def line(row: Mapping[str, Any]) -> str:
    """One row as its line."""
    return json.dumps(finite(dict(row)), ensure_ascii=False, allow_nan=False) + "\n"


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of such a file. Raises ResultsError if it is missing or damaged."""
    with reading(path), path.open(encoding="utf-8") as file:
        for text in file:
            yield json.loads(text)


def finite(value: Any) -> Any:
    """Plain data as JSON can hold it: floats that are not finite become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return value
