"""A user's own files of rows, JSONL, CSV and Parquet, streamed with the place of every row.

Invariants
- Memory is bounded by a line (at most `LONGEST_LINE` bytes before its newline) or a batch of Parquet rows, whatever
  the file's length.
- A bad row is yielded as a problem and does not end the reading; a file that cannot be read raises DatasetFileError.
- What a row must hold is the caller's business. A row of JSONL is any object of JSON's types, all text valid Unicode;
  a row of Parquet has what Arrow makes of its columns, so that a column of dates or bytes gives `datetime` or `bytes`;
  a row of CSV has texts, None where a cell is empty.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from .errors import DatasetFileError
from .separated import DELIMITERS, records

if TYPE_CHECKING:
    import pyarrow

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json-lines")
PARQUET_SUFFIXES = (".parquet",)
_SUFFIXES = (*JSONL_SUFFIXES, *DELIMITERS, *PARQUET_SUFFIXES)
LONGEST_LINE = 64 * 2**20  # bytes
_BOM = b"\xef\xbb\xbf"
_BATCH = 1024  # Parquet rows at a time


@dataclass(frozen=True)
class Row:
    """One row. place: `path:line` of a JSONL or CSV file, `path:row` of a Parquet file, both counted from 1."""

    place: str
    data: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read. message: what is wrong with it, without a full stop."""

    place: str
    message: str


def read_rows(path: str | Path) -> Iterator[Row | BadRow]:
    """The rows of a JSONL, CSV (.csv, .tsv) or Parquet file, told apart by suffix.

    Blank lines are skipped, but counted. Raises DatasetFileError: at once for a file that is missing, cannot be
    opened or has another suffix; at the end for one without rows; on the way for one that breaks off.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        folder = f" For a folder of save_to_disk give the dataset disk:{path}." if path.is_dir() else ""
        raise DatasetFileError(
            f"{path}: unknown kind of file. Rename or convert it: {', '.join(_SUFFIXES)} can be read.{folder}"
        )
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DatasetFileError(f"{path}: no such file. Check the path.") from None
    except IsADirectoryError:
        raise DatasetFileError(f"{path}: is a folder. Name a file in it.") from None
    except OSError as error:
        raise DatasetFileError(f"{path}: cannot be opened: {error.strerror}. Check its permissions.") from None
    if suffix in PARQUET_SUFFIXES:
        rows = _parquet_rows(file, str(path))
    elif suffix in DELIMITERS:
        rows = _separated_rows(file, str(path), DELIMITERS[suffix])
    else:
        rows = _jsonl_rows(file, str(path))
    return _owning(file, _some(rows, str(path)))


def read_stream(stream: BinaryIO, name: str = "<stdin>") -> Iterator[Row | BadRow]:
    """The rows of an open binary JSONL stream, which stays open. Raises DatasetFileError as `read_rows` does."""
    return _some(_jsonl_rows(stream, name), name)


def _owning(file: BinaryIO, rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    with closing(file):
        yield from rows


def _some(rows: Iterator[Row | BadRow], name: str) -> Iterator[Row | BadRow]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DatasetFileError(f"{name}: holds no rows. Give it at least one.")


# --- JSONL --------------------------------------------------------------------------------------------------------


def _jsonl_rows(stream: BinaryIO, name: str) -> Iterator[Row | BadRow]:
    number = 0
    while line := _next_line(stream, name):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if line.isspace() or not line:
            continue
        place = f"{name}:{number}"
        try:
            yield Row(place, _parse(line))
        except UnicodeDecodeError as error:
            yield BadRow(place, f"not UTF-8 at byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            yield BadRow(place, f"malformed JSON at column {error.colno}: {error.msg}")
        except RecursionError:
            yield BadRow(place, "nested too deeply")
        except ValueError as error:
            yield BadRow(place, str(error))


def _next_line(stream: BinaryIO, name: str) -> bytes:
    """The next line; of one that is too long its first LONGEST_LINE + 1 bytes. Empty at the end."""
    try:
        line = stream.readline(LONGEST_LINE + 1)
        tail = line
        while len(line) > LONGEST_LINE and tail and not tail.endswith(b"\n"):
            tail = stream.readline(LONGEST_LINE)
    except OSError as error:
        raise DatasetFileError(f"{name}: reading broke off: {error.strerror}. Check the disk and try again.") from error
    return line


def _parse(line: bytes) -> dict[str, Any]:
    if len(line.removesuffix(b"\n")) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE:,} bytes")
    text = line.decode("utf-8").rstrip("\r\n")  # or an error at its end would stand in column 1 of the next line
    data = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    if not isinstance(data, dict):
        raise ValueError(f"not a JSON object but {_KINDS[type(data)]}")
    if b"\\u" in line:
        _refuse_lone_surrogates(data)
    return data


_KINDS = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return data


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits} is too large")
    return number


def _refuse_lone_surrogates(data: dict[str, Any]) -> None:
    """JSON's escapes can spell half a character, which no UTF-8 file could hold afterwards."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"the escape \\u{ord(half):04x} is half a character (a lone surrogate)") from None


# --- CSV ----------------------------------------------------------------------------------------------------------


def _separated_rows(file: BinaryIO, name: str, delimiter: str) -> Iterator[Row | BadRow]:
    for line, record in records(file, name, delimiter, LONGEST_LINE):
        place = f"{name}:{line}"
        yield BadRow(place, record) if isinstance(record, str) else Row(place, dict(record))


# --- Parquet ------------------------------------------------------------------------------------------------------


def _parquet_rows(file: BinaryIO, name: str) -> Iterator[Row | BadRow]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        table = ParquetFile(file)
        columns = table.schema_arrow.names
        if len(set(columns)) < len(columns):
            raise DatasetFileError(f"{name}: two columns have the same name. Rename one.")
        for batch in table.iter_batches(batch_size=_BATCH):
            for data in _to_rows(batch):
                number += 1
                place = f"{name}:{number}"
                yield BadRow(place, "text that is not UTF-8") if data is None else Row(place, data)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DatasetFileError(f"{name}: not a whole Parquet file: {reason}. Write it again.") from None


def _to_rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch as dicts; None for one whose text is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
        else:  # find the culprit row by row; rare enough to be slow
            for index in range(batch.num_rows):
                yield from _to_rows(batch.slice(index, 1))
