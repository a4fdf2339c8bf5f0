"""Files of an attempt: exact values, any text, whole or not at all, and sentences when they cannot be written."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import ResultsError
from jobs.files import final_name
from jobs.jsonl import read_jsonl, write_jsonl
from jobs.parquet import (
    ROW_GROUP,
    SHARD_SCHEMA,
    concatenate,
    read_pieces,
    read_prompt,
    read_rows,
    read_table,
    schema_with,
    write_rows,
)
from jobs.snapshot import SnapshotRow
from tests.rows import made_row


def rows_of(*prompts: int, samples: int = 2) -> list[dict[str, Any]]:
    return [made_row(SnapshotRow(p, f"id-{p}", prompt=f"prompt {p}"), g) for p in prompts for g in range(samples)]


def test_values_come_back_exactly_and_in_order(tmp_path: Path) -> None:
    rows = rows_of(0, 1, 2, 3)
    extremes = np.array([-np.inf, -0.0, 1e-45, np.finfo(np.float32).min], dtype=np.float32)
    rows[3] |= {"logprobs": extremes, "response_ids": [0, 1, 2, 2**31 - 1]}
    path = tmp_path / "s.parquet"
    written = write_rows(path, reversed(rows))
    assert written == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)

    read = list(read_rows(path))
    assert [list(row) for row in read] == [SHARD_SCHEMA.names] * 8
    for row, expected in zip(read, rows, strict=True):
        for name, value in expected.items():
            assert row[name] == (value.tolist() if isinstance(value, np.ndarray) else value), name
    for row, expected in zip(read_rows(path, arrays=True), rows, strict=True):
        assert row["logprobs"].dtype == np.float32
        assert row["logprobs"].tobytes() == expected["logprobs"].tobytes()
        assert row["response_ids"].tolist() == expected["response_ids"]
        assert row["sampling_entropies"] is None


def test_encodings(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_rows(path, rows_of(1, 2))
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    for name in ("logprobs", "entropies", "sampling_logprobs"):
        assert "BYTE_STREAM_SPLIT" in columns[f"{name}.list.element"].encodings


def test_half_characters_do_not_break_a_shard(tmp_path: Path) -> None:
    row = rows_of(1)[0] | {"response": "a\ud83db</answer>", "stop_offset": 3, "prompt": "\udfff"}
    write_rows(tmp_path / "s.parquet", [row])
    (read,) = read_rows(tmp_path / "s.parquet")
    assert read["response"] == "a\ufffdb</answer>"
    assert read["response"][read["stop_offset"] :] == "</answer>"
    write_jsonl(tmp_path / "e.jsonl", [{"prompt_index": 1, "sample_index": None, "custom_id": "\ud800", "error": "x"}])
    assert len(list(read_jsonl(tmp_path / "e.jsonl"))) == 1


def test_no_rows_is_a_file_too(tmp_path: Path) -> None:
    write_rows(tmp_path / "s.parquet", [])
    assert list(read_rows(tmp_path / "s.parquet")) == []
    assert read_table([tmp_path / "s.parquet"]).schema == SHARD_SCHEMA


class TestDiagnostics:
    """Columns that only those files have whose job asked for them."""

    NAMES = ("margins", "top_ids", "top_logprobs")

    def rows(self, *prompts: int) -> list[dict[str, Any]]:
        rows = rows_of(*prompts)
        for row in rows:
            n = len(row["response_ids"])
            margins = np.linspace(0, 1, n, dtype=np.float32)
            ids, values = np.arange(2 * n).reshape(n, 2) + 2**24, np.full((n, 2), -np.inf, dtype=np.float32)
            row |= {"top_ids": list(ids), "top_logprobs": list(values), "margins": margins}
        return rows

    def test_values_come_back_exactly(self, tmp_path: Path) -> None:
        rows = self.rows(0, 1, 2)
        assert [] in [row["top_ids"] for row in rows], "an empty response is among them"
        write_rows(tmp_path / "s.parquet", rows)
        for read in (read_rows(tmp_path / "s.parquet", arrays=True), iter(read_prompt(tmp_path / "s.parquet", 1))):
            for row in read:
                assert list(row) == [*SHARD_SCHEMA.names, *self.NAMES]
                (want,) = (r for r in rows if all(r[k] == row[k] for k in ("prompt_index", "sample_index")))
                assert row["margins"].tobytes() == want["margins"].tobytes()
                for name, kind in (("top_ids", np.int32), ("top_logprobs", np.float32)):
                    assert row[name].dtype == kind
                    assert row[name].tolist() == [values.tolist() for values in want[name]]
        plain = next(read_rows(tmp_path / "s.parquet"))
        assert plain["top_ids"] == [values.tolist() for values in rows[0]["top_ids"]]

    def test_beside_files_that_lack_them(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "old.parquet", rows_of(0))
        write_rows(tmp_path / "new.parquet", self.rows(1))
        paths, schema = [tmp_path / "old.parquet", tmp_path / "new.parquet"], schema_with(self.NAMES)
        assert schema.names == [*SHARD_SCHEMA.names, *self.NAMES]
        table = read_table(paths, schema)
        assert [values is None for values in table["top_ids"].to_pylist()] == [True] * 2 + [False] * 2
        concatenate(paths, tmp_path / "all.parquet", schema)
        assert pq.read_table(tmp_path / "all.parquet").equals(table)
        assert [row["margins"] is None for row in read_rows(tmp_path / "all.parquet", arrays=True)] == [
            *[True] * 2,
            *[False] * 2,
        ]
        assert read_table(paths).schema == SHARD_SCHEMA

    def test_encodings(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "s.parquet", self.rows(1, 2))
        group = pq.ParquetFile(tmp_path / "s.parquet").metadata.row_group(0)
        columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        for name in ("margins.list.element", "top_logprobs.list.element.list.element"):
            assert "BYTE_STREAM_SPLIT" in columns[name].encodings


def test_concatenate_is_the_rows_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.parquet" for i in range(3)]
    for i, path in enumerate(paths):
        write_rows(path, rows_of(2 * i, 2 * i + 1) if i != 1 else [])
    concatenate((read_table([path]) for path in paths), tmp_path / "all.parquet")
    assert list(read_rows(tmp_path / "all.parquet")) == [row for path in paths for row in read_rows(path)]


class TestOnePrompt:
    def test_its_rows_and_no_others(self, tmp_path: Path) -> None:
        path = tmp_path / "s.parquet"
        write_rows(path, rows_of(*range(3, 1000, 2), samples=5))  # 2,495 rows: three row groups
        everything = list(read_rows(path))
        for prompt in (3, 5, 411, 413, 415, 823, 999):  # the ends, and where row groups meet
            found = [
                {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
                for row in read_prompt(path, prompt)
            ]
            assert found == [row for row in everything if row["prompt_index"] == prompt]
            assert len(found) == 5
        for prompt in (0, 4, 1000):
            assert read_prompt(path, prompt) == []

    def test_other_row_groups_are_not_touched(self, tmp_path: Path) -> None:
        path = tmp_path / "s.parquet"
        write_rows(path, rows_of(*range(1500), samples=1))
        second = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
        damaged = bytearray(path.read_bytes())
        damaged[4:second] = bytes(second - 4)
        path.write_bytes(damaged)
        assert [row["prompt_index"] for row in read_prompt(path, ROW_GROUP + 7)] == [ROW_GROUP + 7]
        with pytest.raises(ResultsError, match="may be damaged"):
            read_prompt(path, 7)


def test_pieces_are_all_rows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{i}.parquet" for i in range(5)]
    for i, path in enumerate(paths):
        write_rows(path, rows_of(*range(100 * i, 100 * i + (60 if i != 2 else 0))))
    columns = ["prompt_index", "logprobs"]
    whole = read_table(paths).select(columns)
    [piece] = read_pieces(paths, columns)
    assert piece == whole
    monkeypatch.setattr("jobs.parquet._PIECE", 1)
    pieces = list(read_pieces(paths, columns))
    assert len(pieces) == 4
    assert pa.concat_tables(pieces) == whole
    paths[3].unlink()
    with pytest.raises(ResultsError, match=r"3\.parquet is missing"):
        list(read_pieces(paths, columns))


def test_other_readers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "s.parquet", rows_of(1, 2))
    dataset = datasets.Dataset.from_parquet(str(tmp_path / "s.parquet"), cache_dir=str(tmp_path / "cache"))
    assert list(dataset) == list(read_rows(tmp_path / "s.parquet"))


class TestFaults:
    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ResultsError, match=r"cannot be written: Not a directory; .* SEQPROC_RESULTS_DIR"):
            write_rows(tmp_path / "file" / "s.parquet", rows_of(1))

    @pytest.mark.parametrize(
        ("number", "says"),
        [(errno.ENOSPC, "disk of .* is full"), (errno.EDQUOT, "is full"), (errno.EROFS, "is not writable .*Read-only")],
    )
    def test_what_the_system_refuses_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
    ) -> None:
        def refuse(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(ResultsError, match=says):
            write_rows(tmp_path / "s.parquet", rows_of(1))
        assert list(tmp_path.iterdir()) == []

    def test_a_really_full_disk_is_told_apart(self) -> None:
        from jobs.parquet import SegmentWriter

        with pytest.raises(ResultsError, match="disk of /dev is full"):
            segment = SegmentWriter(Path("/dev/full"))
            segment.write([{"prompt": "x" * 100_000}])
            segment.close()

    def test_missing_and_damaged(self, tmp_path: Path) -> None:
        with pytest.raises(ResultsError, match=r"s\.parquet is missing: its folder was moved"):
            list(read_rows(tmp_path / "s.parquet"))
        (tmp_path / "s.parquet").write_bytes(b"short")
        with pytest.raises(ResultsError, match=r"s\.parquet cannot be read, it may be damaged"):
            list(read_rows(tmp_path / "s.parquet"))


def test_a_temporary_name_tells_what_it_was_going_to_be() -> None:
    assert final_name(".shard-000001-a002-0badcafe.parquet.12345678.tmp") == "shard-000001-a002-0badcafe.parquet"
    assert final_name("manifest.json") == "manifest.json"
