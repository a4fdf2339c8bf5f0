"""Text tables: CSV (commas) and TSV (tabs) as RFC 4180 has them, a header line first, in UTF-8.

Every cell is text; an empty one is None, for such a file has no other word for "not given". Quoted cells may hold line
breaks. A record that is malformed is a sentence in its place and does not end the reading.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

from .errors import DatasetFileError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FOREIGN = "\udc80", "\udcff"  # what decoding makes of the first and last byte that is not UTF-8
_HINTS = {
    "unexpected end of data": "a quote is opened and never closed",
    "field larger than field limit": "a cell is too long, or a quote is opened and never closed",
}


def records(
    stream: BinaryIO, name: str, delimiter: str, longest: int
) -> Iterator[tuple[int, dict[str, str | None] | str]]:
    """(line on which it begins, the record or what is wrong with it), the header left out.

    `longest`: most bytes of a line, most characters of a cell. Raises DatasetFileError for a header that leaves a
    column unnamed or names two alike, for a line that is too long, and when reading breaks off.
    """
    csv.field_size_limit(max(csv.field_size_limit(), longest))  # the process's own; 131,072 is too few for some prompts
    reader = csv.reader(_lines(stream, name, longest), delimiter=delimiter, strict=True)
    try:
        header = _header(reader, name)
        line = reader.line_num + 1
        while True:
            found = _next(reader, header)
            if found is None:
                return
            if found:
                yield line, found
            line = reader.line_num + 1
    except OSError as error:
        raise DatasetFileError(f"{name}: reading broke off: {error.strerror}. Check the disk and try again.") from None


def _lines(stream: BinaryIO, name: str, longest: int) -> Iterator[str]:
    """Bytes that are not UTF-8 become lone surrogates, to be found when the record is whole."""
    encoding = "utf-8-sig"
    while line := stream.readline(longest + 1):
        if len(line) > longest:
            raise DatasetFileError(f"{name}: a line is longer than {longest:,} bytes. Is this a table of texts?")
        yield line.decode(encoding, "surrogateescape")
        encoding = "utf-8"


def _header(reader: Iterator[list[str]], name: str) -> list[str]:
    try:
        header = next((cells for cells in reader if cells), [])
    except csv.Error as error:
        raise DatasetFileError(f"{name}: the header is malformed: {_reason(error)}. Mend its first line.") from None
    if any(not cell.strip() or _is_foreign(cell) for cell in header):
        raise DatasetFileError(f"{name}: the header leaves a column without a name in UTF-8. Name every column.")
    if twice := next((cell for cell in header if header.count(cell) > 1), None):
        raise DatasetFileError(f"{name}: two columns have the name {twice!r}. Rename one.")
    return header


def _next(reader: Iterator[list[str]], header: list[str]) -> dict[str, str | None] | str | None:
    """The next record or what is wrong with it; empty for a blank line; None at the end."""
    try:
        cells = next(reader, None)
    except csv.Error as error:
        return _reason(error)
    if not cells:
        return None if cells is None else {}
    if len(cells) != len(header):
        return f"has {len(cells)} cells, not one for each of the header's {len(header)} ({', '.join(header)})"
    if any(map(_is_foreign, cells)):
        return "holds text that is not UTF-8"
    return {column: cell or None for column, cell in zip(header, cells, strict=True)}


def _is_foreign(cell: str) -> bool:
    return not cell.isascii() and any(_FOREIGN[0] <= character <= _FOREIGN[1] for character in cell)


def _reason(error: csv.Error) -> str:
    text = str(error)
    return next((hint for start, hint in _HINTS.items() if text.startswith(start)), f"malformed: {text}")
