"""Prompts from every source, and what is wrong with them, with its place."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import prompts as module
from jobs.errors import SpecError
from jobs.paths import JobPaths
from jobs.prompts import PromptSource
from jobs.snapshot import read_all, write_snapshot
from jobs.spec import JobSpec, PromptRow
from rlp_datasets import DATASET_REGISTRY


def spec(**fields: Any) -> JobSpec:
    return JobSpec.parse({"model": "tiny-arithmetic", "seed": 3, **fields}).resolve()


def take(folder: Path, source: PromptSource) -> list[PromptRow]:
    """All rows, after the checks that submit makes."""
    paths = JobPaths(folder, "job")
    rows = list(source)
    snapshot = write_snapshot(paths, rows, shard_size=16)
    source.check(lambda: read_all(paths, len(snapshot.segments)))
    return rows


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def problems_of(folder: Path, source: PromptSource) -> list[str]:
    with pytest.raises(SpecError) as caught:
        take(folder, source)
    return caught.value.problems


class TestFile:
    def test_rows_in_order(self, tmp_path: Path) -> None:
        chat = [{"role": "user", "content": "hi"}]
        file = jsonl(tmp_path / "p.jsonl", {"prompt": "a", "answer": "1", "level": 3}, "", {"messages": chat})
        source = PromptSource(spec(file=file))
        assert take(tmp_path, source) == [PromptRow(prompt="a", answer="1"), PromptRow(messages=chat)]
        assert source.ignored_columns == ["level"]

    def test_a_malformed_line_70_001_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text('{"prompt": "a"}\n' * 70_000 + '{"prompt": "a"\n' + '{"prompt": "a"}\n')
        with pytest.raises(SpecError) as caught:
            source = PromptSource(spec(file=str(path)))
            assert sum(1 for _ in source) == 70_001
            source.check(lambda: ())
        assert len(caught.value.problems) == 1
        assert caught.value.problems[0].startswith(f"{path}:70001: malformed JSON")

    def test_every_bad_line_with_field_and_message(self, tmp_path: Path) -> None:
        file = jsonl(tmp_path / "p.jsonl", {"prompt": 3}, {"prompt": "fine"}, {"text": "x"}, "[1]", {"prompt": "b"})
        found = problems_of(tmp_path, PromptSource(spec(file=file)))
        assert found == [
            f"{file}:1 prompt: input should be a valid string, not 3",
            f"{file}:3 give exactly one of prompt, messages, prompt_token_ids; this row has none of them",
            f"{file}:4: not a JSON object but an array",
        ]

    def test_the_first_hundred_and_a_count(self, tmp_path: Path) -> None:
        file = jsonl(tmp_path / "p.jsonl", *[{"prompt": 1}] * 250)
        with pytest.raises(SpecError) as caught:
            take(tmp_path, PromptSource(spec(file=file)))
        assert (len(caught.value.problems), caught.value.total) == (100, 250)
        assert str(caught.value).endswith("… and 150 more problems")

    @pytest.mark.parametrize(
        ("content", "says"),
        [(b"", "holds no rows"), (b'{"prompt": "\xff"}\n', "not UTF-8 at byte"), (b'{"prompt": "\\ud800"}\n', "half")],
    )
    def test_empty_and_undecodable(self, tmp_path: Path, content: bytes, says: str) -> None:
        path = tmp_path / "p.jsonl"
        path.write_bytes(content)
        found = problems_of(tmp_path, PromptSource(spec(file=str(path))))
        assert len(found) == 1
        assert str(path) in found[0] and says in found[0]

    def test_a_missing_file(self, tmp_path: Path) -> None:
        found = problems_of(tmp_path, PromptSource(spec(file=str(tmp_path / "none.jsonl"))))
        assert found == [f"{tmp_path / 'none.jsonl'}: no such file. Check the path."]

    def test_standard_input(self, tmp_path: Path) -> None:
        stream = io.BytesIO(b'{"prompt": "a"}\n{"prompt": 1}\n')
        found = problems_of(tmp_path, PromptSource(spec(file="-"), stdin=stream))
        assert found == ["<stdin>:2 prompt: input should be a valid string, not 1"]


class TestCustomIds:
    def test_twice_names_both_places(self, tmp_path: Path) -> None:
        file = jsonl(tmp_path / "p.jsonl", *({"prompt": "a", "custom_id": c} for c in "abcb"), {"prompt": "x"})
        found = problems_of(tmp_path, PromptSource(spec(file=file)))
        assert found == [f"{file}:4 custom_id: 'b' stands already at {file}:2; give each its own"]

    def test_a_row_without_one_is_called_by_its_index(self, tmp_path: Path) -> None:
        rows = [{"prompt": "a", "custom_id": "1"}, "b"]
        found = problems_of(tmp_path, PromptSource(spec(), prompts=rows))
        why = "(a row without a custom_id gets its index)"
        assert found == [f"prompts[1] custom_id: '1' {why} stands already at prompts[0]; give each its own"]

    def test_equal_hashes_are_only_a_suspicion(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Colliding:
            def __init__(self, data: bytes, digest_size: int) -> None: ...

            def digest(self) -> bytes:
                return bytes(8)

        monkeypatch.setattr(module, "blake2b", Colliding)
        rows = [{"prompt": "p", "custom_id": c} for c in "abcad"]
        assert len(take(tmp_path / "good", PromptSource(spec(), prompts=rows[:3]))) == 3
        found = problems_of(tmp_path / "bad", PromptSource(spec(), prompts=rows))
        assert found == ["prompts[3] custom_id: 'a' stands already at prompts[0]; give each its own"]


class TestPython:
    def test_any_iterable_is_streamed(self, tmp_path: Path) -> None:
        taken = []

        def endless() -> Iterator[Any]:
            for number in range(10**9):
                taken.append(number)
                yield f"prompt {number}" if number % 2 else {"prompt": "p", "custom_id": str(-number - 1)}

        source = iter(PromptSource(spec(), prompts=endless()))
        assert [next(source).prompt for _ in range(4)] == ["p", "prompt 1", "p", "prompt 3"]
        assert len(taken) == 4

    def test_a_wrong_element_is_named(self, tmp_path: Path) -> None:
        found = problems_of(tmp_path, PromptSource(spec(), prompts=["a", 5, {"prompt": "b", "custom_id": ""}]))
        assert found[0].startswith("prompts[1] ") and found[0].endswith(", not 5")
        assert found[1].startswith("prompts[2] custom_id: ")

    def test_none_at_all(self, tmp_path: Path) -> None:
        assert problems_of(tmp_path, PromptSource(spec(), prompts=[])) == ["prompts: there are none; give at least one"]
        with pytest.raises(SpecError, match="give prompts, a file"):
            PromptSource(spec())

    def test_two_sources(self) -> None:
        with pytest.raises(SpecError, match="prompts and file are given"):
            PromptSource(spec(file="p.jsonl"), prompts=["a"])

    def test_what_is_to_be_scored_needs_a_response(self, tmp_path: Path) -> None:
        rows = [{"prompt": "a", "response": ""}, {"prompt": "a", "response_token_ids": [1]}, {"prompt": "b"}]
        found = problems_of(tmp_path, PromptSource(spec(kind="score"), prompts=rows))
        assert found == ["prompts[2] response: kind score needs response or response_token_ids"]


class TestDataset:
    NAME = "arithmetic_r1_template"

    def test_all_in_order(self, tmp_path: Path) -> None:
        rows = take(tmp_path, PromptSource(spec(dataset=self.NAME, split="test")))
        examples = DATASET_REGISTRY[self.NAME](split="test")
        assert [row.prompt for row in rows] == [example.text for example in examples]
        assert [row.answer for row in rows] == [example.answer for example in examples]
        assert rows[3].custom_id == "test-3"

    def test_drawn_without_replacement_by_prompt_seed(self, tmp_path: Path) -> None:
        rows = take(tmp_path, PromptSource(spec(dataset=self.NAME, split="test", num_prompts=50, prompt_seed=9)))
        chosen = random.Random(9).sample(range(2000), 50)
        assert [row.custom_id for row in rows] == [f"test-{index}" for index in chosen]

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"dataset": "arithmetik"}, "Unknown dataset 'arithmetik'. There are: "),
            ({"dataset": NAME, "split": "dev"}, "has no split 'dev'"),
            ({"dataset": NAME, "split": "test", "num_prompts": 2001}, "has 2,000 prompts in split test, not 2,001"),
        ],
    )
    def test_what_is_not_there(self, tmp_path: Path, fields: dict[str, Any], says: str) -> None:
        found = problems_of(tmp_path, PromptSource(spec(**fields)))
        assert len(found) == 1 and says in found[0]
