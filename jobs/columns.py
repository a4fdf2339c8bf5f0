"""Which column of a source is which field of a prompt: `{"prompt": "question", "answer": "gold"}`.

A named column goes by its field's name and no longer by its own; columns that the map does not name stay as they are.
A number in a named column counts as its text where the field is one: tables keep ids and answers as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXTS = ("custom_id", "prompt", "answer", "response")
_SHOWN = 20  # columns that a sentence lists


class Columns:
    """Applies such a map to row after row, and remembers which of its columns never came."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = dict(fields)
        self._taken = set(fields) | set(fields.values())
        self._missing = set(fields.values())
        self._seen: dict[str, None] = {}  # in order of appearance

    def __call__(self, row: Any) -> Any:
        """The row by the names of fields. What is no row of columns stays as it is."""
        if not self._fields or not isinstance(row, dict):
            return row
        if self._missing:
            self._missing -= row.keys()
            self._seen.update(dict.fromkeys(row))
        named = {field: _as_field(field, row[column]) for field, column in self._fields.items() if column in row}
        return {name: value for name, value in row.items() if name not in self._taken} | named

    def problems(self) -> list[str]:
        """A line for each column that no row had, once all rows are through."""
        there = ", ".join(list(self._seen)[:_SHOWN]) + (", …" if len(self._seen) > _SHOWN else "")
        return [
            f"columns: {field} is to come from {column!r}, but no row has such a column; there are {there}"
            for field, column in self._fields.items()
            if column in self._missing and self._seen
        ]


def _as_field(field: str, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and field in _TEXTS else value
