"""A table of reports folded to a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobs.report_table import Table, folded


def width(table: Table) -> int:
    columns = zip(table.header, *table.rows, strict=True)
    return sum(max(map(len, column)) + 2 for column in columns) - 2


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    count=st.integers(1, 5),
    limit=st.integers(40, 120),
)
def test_every_column_is_there_once_and_nothing_is_too_wide(sizes: list[int], count: int, limit: int) -> None:
    header = ["ID", *(f"C{n}" for n in range(len(sizes)))]
    rows = [[f"id{r}", *("x" * size for size in sizes)] for r in range(count)]
    parts = list(folded(Table(header, rows), limit))
    assert [title for part in parts for title in part.header if title != "ID"] == header[1:]
    assert all(part.header[0] == "ID" and [row[0] for row in part.rows] == [row[0] for row in rows] for part in parts)
    assert all(width(part) <= limit or len(part.header) == 2 for part in parts)


def test_rows_are_told_apart_by_names_only_where_all_differ() -> None:
    header, more = ["ID", "NAME", "A"], ["x" * 10]
    named = Table(header, [["1", "ann", *more], ["2", "bob", *more]])
    assert [part.header for part in folded(named, 9)] == [["ID", "NAME"], ["NAME", "A"]]
    for second in ("ann", ""):
        unnamed = Table(header, [["1", "ann", *more], ["2", second, *more]])
        assert [part.header for part in folded(unnamed, 9)] == [["ID", "NAME"], ["ID", "A"]]
