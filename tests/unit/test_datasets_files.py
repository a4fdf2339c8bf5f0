"""rlp_datasets.files: rows with their places; bad rows do not stop the reading, unreadable files are one sentence."""

import datetime
import io
import os
import tracemalloc

import psutil
import pyarrow
import pyarrow.parquet
import pytest

from rlp_datasets import BadRow, DatasetFileError, Row, read_rows, read_stream
from rlp_datasets import files as files_module


def lines(*content: bytes, end: bytes = b"\n") -> list[Row | BadRow]:
    return list(read_stream(io.BytesIO(end.join(content))))


# --- JSONL --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json-lines", ".JSONL"])
def test_rows_with_their_lines(tmp_path, suffix):
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes('\ufeff{"prompt": "Grüße \U0001f600"}\r\n\n  \n{"prompt": "b", "n": [1, null, 0.5]}'.encode())
    assert list(read_rows(str(path))) == [
        Row(f"{path}:1", {"prompt": "Grüße \U0001f600"}),
        Row(f"{path}:4", {"prompt": "b", "n": [1, None, 0.5]}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', "malformed JSON at column 15: Expecting ',' delimiter"),
        (b"{'prompt': 1}", "malformed JSON at column 2: Expecting property name enclosed in double quotes"),
        (b'{"a": 1} {"b": 2}', "malformed JSON at column 10: Extra data"),
        (b"[1, 2]", "not a JSON object but an array"),
        (b'"text"', "not a JSON object but a string"),
        (b"null", "not a JSON object but null"),
        (b'{"prompt": "\xff"}', "not UTF-8 at byte 13 of the line"),
        ('{"prompt": "Gr\u00fc\u00dfe"}'.encode("latin-1"), "not UTF-8 at byte 15 of the line"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        (b'{"deep": {"a": 1, "a": 1}}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": "\\ud83d"}', "the escape \\ud83d is half a character (a lone surrogate)"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    ],
)
def test_a_bad_line_is_told_and_passed(line, message):
    first, bad, last = lines(b'{"a": 1}', line, b'{"a": 2}')
    assert (first, last) == (Row("<stdin>:1", {"a": 1}), Row("<stdin>:3", {"a": 2}))
    assert isinstance(bad, BadRow)
    assert bad.place == "<stdin>:2"
    assert bad.message.startswith(message)


def test_escapes_that_make_whole_characters_are_kept():
    assert lines(b'{"a": "\\ud83d\\ude00 \\u00e9"}') == [Row("<stdin>:1", {"a": "\U0001f600 é"})]


def test_a_line_may_not_be_endless(monkeypatch):
    monkeypatch.setattr(files_module, "LONGEST_LINE", 20)
    rows = lines(b'{"a": "' + b"x" * 12 + b'"}', b'{"a": "' + b"x" * 500 + b'"}', b'{"a": 2}', b"y" * 40)
    assert [type(row) for row in rows] == [BadRow, BadRow, Row, BadRow]
    assert rows[1] == BadRow("<stdin>:2", "longer than 20 bytes")
    assert [row.place for row in rows] == [f"<stdin>:{n}" for n in (1, 2, 3, 4)]


def test_a_line_of_just_the_longest(monkeypatch):
    line = b'{"a": "' + b"x" * 11 + b'"}'
    monkeypatch.setattr(files_module, "LONGEST_LINE", len(line))
    assert [row.data["a"] for row in lines(line, line)] == ["x" * 11] * 2


def test_memory_does_not_grow_with_the_file():
    line = b'{"prompt": "' + b"x" * 1000 + b'"}\n'

    class Long(io.RawIOBase):
        """10,000 lines of a kilobyte, handed out as they are read."""

        left = 10_000

        def readline(self, size=-1):
            self.left -= 1
            return line if self.left >= 0 else b""

    tracemalloc.start()
    try:
        assert sum(isinstance(row, Row) for row in read_stream(Long())) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_a_stream_stays_open_and_is_read_as_it_comes():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        pipe.write(b'{"a": 1}\n{"a": 2}\n')
        rows = read_stream(stream, name="<pipe>")
        assert next(rows) == Row("<pipe>:1", {"a": 1})  # before the pipe is closed
        pipe.close()
        assert list(rows) == [Row("<pipe>:2", {"a": 2})]
        assert not stream.closed


# --- Parquet ------------------------------------------------------------------------------------------------------


def test_parquet_rows_with_their_numbers(tmp_path):
    path = tmp_path / "prompts.parquet"
    data = [{"prompt": f"p{n}", "messages": [{"role": "user", "content": "x"}]} for n in range(3000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), path)
    rows = list(read_rows(path))
    assert [row.data for row in rows] == data
    assert [row.place for row in rows] == [f"{path}:{n}" for n in range(1, 3001)]


def test_parquet_text_that_is_not_utf8_spoils_only_its_row(tmp_path):
    path = tmp_path / "prompts.parquet"
    texts = pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), path)
    assert list(read_rows(path)) == [
        Row(f"{path}:1", {"prompt": "a"}),
        BadRow(f"{path}:2", "text that is not UTF-8"),
        Row(f"{path}:3", {"prompt": "c"}),
    ]


def test_parquet_columns_that_are_none_of_jsons_come_as_arrow_has_them(tmp_path):
    path = tmp_path / "prompts.parquet"
    row = {"prompt": "a", "when": datetime.date(2026, 1, 2), "blob": b"\xff"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    assert list(read_rows(path)) == [Row(f"{path}:1", row)]


def test_parquet_is_streamed(tmp_path):
    path = tmp_path / "prompts.parquet"
    texts = [os.urandom(250).hex() for _ in range(20_000)]  # 10 MB that do not compress away
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), path, row_group_size=1000)
    texts.clear()
    before = pyarrow.total_allocated_bytes()
    assert max(pyarrow.total_allocated_bytes() - before for _ in read_rows(path)) < 4_000_000


def test_parquet_with_two_columns_of_one_name(tmp_path):
    path = tmp_path / "prompts.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array([1])] * 2, ["prompt", "prompt"]), path)
    with pytest.raises(DatasetFileError, match="two columns have the same name"):
        list(read_rows(path))


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_parquet_that_is_none(tmp_path, content):
    path = tmp_path / "prompts.parquet"
    path.write_bytes(content)
    with pytest.raises(DatasetFileError, match=r"prompts\.parquet: not a whole Parquet file: .*\. Write it again\.$"):
        list(read_rows(path))


# --- files as a whole ---------------------------------------------------------------------------------------------


def test_what_can_be_known_at_once_is_said_at_once(tmp_path):
    with pytest.raises(DatasetFileError, match=r"none\.jsonl: no such file"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DatasetFileError, match=r"folder\.jsonl: is a folder"):
        read_rows(tmp_path / "folder.jsonl")
    with pytest.raises(DatasetFileError, match=r"prompts\.xlsx: unknown kind of file.*\.jsonl.*\.csv.*\.parquet"):
        read_rows(tmp_path / "prompts.xlsx")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """By a stand-in for the system's refusal: the tests may run as root, whom nothing is refused."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DatasetFileError, match=r"a\.jsonl: cannot be opened: Permission denied"):
        read_rows(tmp_path / "a.jsonl")


def test_reading_that_breaks_off():
    class Broken(io.RawIOBase):
        def readline(self, size=-1):
            raise OSError(5, "Input/output error")

    with pytest.raises(DatasetFileError, match="<stdin>: reading broke off: Input/output error"):
        list(read_stream(Broken()))


@pytest.mark.parametrize("content", [b"", b"\n \n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetFileError, match=r"a\.jsonl: holds no rows"):
        list(read_rows(path))


def test_a_parquet_file_without_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DatasetFileError, match=r"a\.parquet: holds no rows"):
        list(read_rows(path))


def test_a_file_is_closed_when_its_reader_stops(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 3)
    rows = read_rows(path)
    next(rows)
    assert is_open(path)
    rows.close()
    assert not is_open(path)


def is_open(path) -> bool:
    return str(path.resolve()) in [file.path for file in psutil.Process().open_files()]
