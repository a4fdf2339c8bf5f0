"""Snapshots: what goes in comes out, in shards that cross no segment, under a digest of the prompts alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import snapshot as module
from jobs.errors import ResultsError
from jobs.paths import JobPaths
from jobs.snapshot import Snapshot, SnapshotRow, digest_of, read_all, read_rows, write_snapshot
from jobs.spec import PromptRow

MESSAGES = [{"role": "user", "content": "ünï", "zeta": 1, "alpha": [None, 1.5]}]
ROWS = [
    PromptRow(prompt="a\nb", custom_id="first", answer="1"),
    PromptRow(messages=MESSAGES),
    PromptRow(prompt_token_ids=[1, 2, 2**31 - 1], response_token_ids=[]),
    PromptRow(prompt="", response=""),
]


@pytest.fixture
def paths(tmp_path: Path) -> JobPaths:
    return JobPaths(tmp_path, "job")


def numbered(count: int) -> list[PromptRow]:
    return [PromptRow(prompt=f"prompt {i}") for i in range(count)]


def test_every_field_comes_back(paths: JobPaths) -> None:
    write_snapshot(paths, ROWS, shard_size=16)
    assert read_rows(paths, 0, 0, 4) == [
        SnapshotRow(0, "first", prompt="a\nb", answer="1"),
        SnapshotRow(1, "1", messages=MESSAGES),
        SnapshotRow(2, "2", prompt_token_ids=[1, 2, 2**31 - 1], response_token_ids=[]),
        SnapshotRow(3, "3", prompt="", response=""),
    ]
    (chat,) = read_rows(paths, 0, 1, 2)
    assert chat.messages is not None
    assert list(chat.messages[0]) == list(MESSAGES[0]), "a template may show the order of keys"


def test_the_digest_is_of_canonical_lines(paths: JobPaths) -> None:
    snapshot = write_snapshot(paths, ROWS, shard_size=16)
    lines = (
        '{"custom_id":"first","prompt":"a\\nb","answer":"1"}\n'
        '{"messages":[{"role":"user","content":"ünï","zeta":1,"alpha":[null,1.5]}]}\n'
        '{"prompt_token_ids":[1,2,2147483647],"response_token_ids":[]}\n'
        '{"prompt":"","response":""}\n'
    )
    assert snapshot.digest == hashlib.sha256(lines.encode()).hexdigest()
    assert digest_of(paths, 1) == snapshot.digest


@pytest.mark.parametrize("shard_size", [1, 3, 7, 50])
def test_segments_hold_whole_shards(paths: JobPaths, shard_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_ROWS", 20)
    monkeypatch.setattr(module, "ROW_GROUP", 4)
    snapshot = write_snapshot(paths, numbered(45), shard_size=shard_size)
    assert snapshot.num_prompts == 45
    assert sorted(path.name for path in paths.prompts.iterdir()) == [
        f"segment-{i:05d}.parquet" for i in range(len(snapshot.segments))
    ]
    seen = []
    for shard in snapshot.shards(shard_size):
        rows = read_rows(paths, shard.segment, shard.start, shard.stop)
        assert rows[0].prompt_index == shard.first_prompt
        seen.append([row.prompt for row in rows])
    assert [prompt for shard in seen for prompt in shard] == [f"prompt {i}" for i in range(45)]
    assert all(len(shard) == shard_size for shard in seen[:-1])
    assert [row.prompt_index for row in read_all(paths, len(snapshot.segments))] == list(range(45))


@given(
    segments=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    shard_size=st.integers(1, 10),
)
def test_shards_cover_every_row_once(segments: tuple[int, ...], shard_size: int) -> None:
    shards = list(Snapshot("", segments).shards(shard_size))
    covered = [(shard.segment, row) for shard in shards for row in range(shard.start, shard.stop)]
    assert covered == [(segment, row) for segment, rows in enumerate(segments) for row in range(rows)]
    assert [shard.first_prompt for shard in shards] == [
        sum(segments[: shard.segment]) + shard.start for shard in shards
    ]


def test_reading_a_shard_touches_only_its_row_groups(paths: JobPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    write_snapshot(paths, numbered(5000), shard_size=16)
    touched = []
    real = pq.ParquetFile.read_row_group

    def watched(self: pq.ParquetFile, i: int) -> object:
        touched.append(i)
        return real(self, i)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    assert [row.prompt_index for row in read_rows(paths, 0, 2040, 2056)] == list(range(2040, 2056))
    assert touched == [1, 2]


def test_long_prompts_make_smaller_row_groups(paths: JobPaths) -> None:
    write_snapshot(paths, (PromptRow(prompt="x" * 2**20) for _ in range(20)), shard_size=16)
    assert pq.ParquetFile(paths.segment(0)).num_row_groups == 3


def test_missing_short_and_damaged(paths: JobPaths) -> None:
    with pytest.raises(ResultsError, match=r"segment-00000\.parquet is missing"):
        read_rows(paths, 0, 0, 1)
    write_snapshot(paths, ROWS, shard_size=16)
    with pytest.raises(ResultsError, match="has 4 rows, not the 9"):
        read_rows(paths, 0, 5, 9)
    paths.segment(0).write_bytes(b"PAR1 nonsense")
    with pytest.raises(ResultsError, match="cannot be read, it may be damaged"):
        read_rows(paths, 0, 0, 1)
