"""CSV and TSV files: the rows that the csv module and pandas read, places, and malformed ones that stop nothing."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import pandas
import pytest

from rlp_datasets import BadRow, DatasetFileError, Row, read_rows
from rlp_datasets import files as files_module


def read(folder: Path, content: bytes, name: str = "p.csv") -> list[Row | BadRow]:
    path = folder / name
    path.write_bytes(content)
    return list(read_rows(path))


def test_what_pandas_writes_is_read_back(tmp_path: Path) -> None:
    texts = ['a "quoted" word', "two\nlines, and\ta tab", "Grüße 😀", "  spaces  ", "x" * 300_000, "'", "a\r\nb"]
    frame = pandas.DataFrame({"prompt": texts, "answer": ["1", None, "3", "4", "5", "6", "7"]})
    for name, delimiter in (("p.csv", ","), ("p.TSV", "\t")):
        frame.to_csv(tmp_path / name, sep=delimiter, index=False)
        rows = list(read_rows(tmp_path / name))
        found = [row.data for row in rows if isinstance(row, Row)]
        assert found == frame.astype(object).where(frame.notna(), None).to_dict("records")


def test_places_are_the_lines_on_which_records_begin(tmp_path: Path) -> None:
    rows = read(tmp_path, b'\xef\xbb\xbfq,a\r\n"one\r\ntwo",1\r\n\r\nthree,3')
    file = tmp_path / "p.csv"
    assert rows == [Row(f"{file}:2", {"q": "one\r\ntwo", "a": "1"}), Row(f"{file}:5", {"q": "three", "a": "3"})]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"only", "has 1 cells, not one for each of the header's 2 (q, a)"),
        (b"a,b,c", "has 3 cells, not one for each of the header's 2 (q, a)"),
        (b'"x"y,1', "malformed: ',' expected after '\"'"),
        (b"Gr\xfc\xdfe,1", "holds text that is not UTF-8"),
    ],
)
def test_a_bad_record_is_told_and_passed(tmp_path: Path, record: bytes, message: str) -> None:
    first, bad, last = read(tmp_path, b"q,a\nx,1\n" + record + b"\ny,2\n")
    assert isinstance(first, Row) and isinstance(last, Row)
    assert (first.data, last.data) == ({"q": "x", "a": "1"}, {"q": "y", "a": "2"})
    assert bad == BadRow(f"{tmp_path / 'p.csv'}:3", message)


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    _, bad = read(tmp_path, b'q,a\nx,1\n"y,2\nz,3\n')
    assert bad == BadRow(f"{tmp_path / 'p.csv'}:3", "a quote is opened and never closed")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"\n\n", "holds no rows"),
        (b"q,a\n", "holds no rows"),
        (b"q,\nx,1\n", "leaves a column without a name"),
        (b"q,a,q\nx,1,2\n", "two columns have the name 'q'"),
        (b'"q"x,a\n', "the header is malformed"),
        (b"q\xff,a\nx,1\n", "a column without a name in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DatasetFileError, match=message):
        read(tmp_path, content)


def test_a_line_may_not_be_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "LONGEST_LINE", 20)
    with pytest.raises(DatasetFileError, match="a line is longer than 20 bytes"):
        read(tmp_path, b"q,a\n" + b"x" * 21 + b",1\n")


def test_other_readers_keep_their_limit_at_least(tmp_path: Path) -> None:
    read(tmp_path, b"q\nx\n")
    assert csv.field_size_limit() >= 131_072


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("prompt,answer\n")
        file.writelines(f'"question {n}\nof two lines",{n}\n' for n in range(200_000))
    tracemalloc.start()
    count = sum(isinstance(row, Row) for row in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200_000
    assert peak < 1e6 < path.stat().st_size, peak
