"""Prompts drawn with replacement: uniform, independent, of any source, and the same again for the same seed."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import chisquare

from jobs.draws import told_apart, with_replacement
from jobs.errors import SpecError
from jobs.prompts import PromptSource
from jobs.spec import JobSpec, PromptRow
from rlp_datasets import DATASET_REGISTRY
from tests.unit.jobs.test_prompts import take

NAME = "arithmetic_r1_template"


def spec(**fields: Any) -> JobSpec:
    return JobSpec.parse({"model": "tiny-arithmetic", "seed": 3, "replacement": True, **fields}).resolve()


def source(count: int) -> list[tuple[int, PromptRow]]:
    return [(number, PromptRow(prompt=f"p{number}")) for number in range(count)]


@pytest.mark.parametrize("rows", [1, 2, 5, 7])
def test_each_pair_of_draws_is_equally_likely(rows: int) -> None:
    """Uniform one by one and independent two by two: each of rows² pairs with 1 / rows²."""
    pairs = Counter(
        tuple(number for number, _ in with_replacement(source(rows), 2, seed)) for seed in range(400 * rows**2)
    )
    assert len(pairs) == rows**2
    assert rows == 1 or chisquare(list(pairs.values())).pvalue > 1e-3


def test_many_more_draws_than_rows_and_many_fewer() -> None:
    assert len(list(with_replacement(source(3), 1000, 1))) == 1000
    assert len({number for number, _ in with_replacement(source(100_000), 2, 1)}) == 2
    assert list(with_replacement([], 5, 1)) == []
    assert chisquare(list(Counter(n for n, _ in with_replacement(source(10), 20_000, 7)).values())).pvalue > 1e-3


def test_the_same_seed_draws_the_same() -> None:
    def drawn(seed: int) -> list[int]:
        return [number for number, _ in with_replacement(iter(source(50)), 20, seed)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_names_tell_draws_apart() -> None:
    a, b = PromptRow(prompt="a", custom_id="x"), PromptRow(prompt="b")
    names = [row.custom_id for _, row in told_apart([(3, a), (4, b), (3, a), (3, a), (4, b)])]
    assert names == ["x", "row-4", "x#2", "x#3", "row-4#2"]


class TestSources:
    def test_a_dataset(self, tmp_path: Path) -> None:
        rows = take(tmp_path, PromptSource(spec(dataset=NAME, split="test", num_prompts=3000, prompt_seed=9)))
        chosen = random.Random(9).choices(range(2000), k=3000)
        examples = DATASET_REGISTRY[NAME](split="test")
        assert [row.prompt for row in rows] == [examples[index].text for index in chosen]
        assert [(row.custom_id or "").partition("#")[0] for row in rows] == [f"test-{index}" for index in chosen]
        assert len({row.custom_id for row in rows}) == 3000

    def test_a_file_standard_input_and_python(self, tmp_path: Path) -> None:
        lines = [{"prompt": f"p{i}", "answer": str(i)} for i in range(1, 5)]
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / "p.jsonl").write_text(text)
        fields: dict[str, Any] = {"num_prompts": 6, "prompt_seed": 2}
        of_file = take(tmp_path / "a", PromptSource(spec(file=str(tmp_path / "p.jsonl"), **fields)))
        piped = take(tmp_path / "b", PromptSource(spec(file="-", **fields), stdin=io.BytesIO(text.encode())))
        streamed = take(tmp_path / "c", PromptSource(spec(**fields), prompts=iter(lines)))
        inline = take(tmp_path / "d", PromptSource(spec(prompts=lines, **fields)))
        assert len(of_file) == 6 and all(row.prompt == f"p{row.answer}" for row in of_file)
        assert of_file == piped
        assert [row.prompt for row in of_file] == [row.prompt for row in streamed] == [row.prompt for row in inline]
        assert (of_file[0].custom_id or "").partition("#")[0] == f"row-{of_file[0].answer}", "its line"

    def test_every_bad_line_is_named_though_it_would_not_be_drawn(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' * 500 + "{}\n")
        with pytest.raises(SpecError, match=r"p\.jsonl:501 give exactly one of prompt"):
            take(tmp_path, PromptSource(spec(file=str(tmp_path / "p.jsonl"), num_prompts=1)))

    def test_nothing_to_draw_from(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text("")
        with pytest.raises(SpecError, match="holds no rows"):
            take(tmp_path, PromptSource(spec(file=str(tmp_path / "p.jsonl"), num_prompts=1)))


class TestSpec:
    def test_one_response_unless_more_are_asked_for(self) -> None:
        given = {"dataset": NAME, "num_prompts": 4}
        assert spec(**given).G == 1
        assert spec(**given, G=8).G == 8 and spec(**given, replacement=False).G == 8
        once = spec(**given)
        assert once.resolve() == once and JobSpec.of_stored(once.stored()) == once
        assert once.digest() != spec(**given, replacement=False, G=1).digest()

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"dataset": NAME}, "replacement needs num_prompts"),
            ({"kind": "score", "file": "x", "num_prompts": 2}, "kind score measures each response once"),
            ({"replacement": False, "file": "x", "num_prompts": 2}, "num_prompts and prompt_seed draw from a dataset"),
            ({"num_prompts": 2, "resample_equal": 1, "rewards": ["tag_format"]}, "responses that can differ"),
        ],
    )
    def test_what_makes_no_sense(self, fields: dict[str, Any], says: str) -> None:
        with pytest.raises(SpecError, match=says):
            spec(**fields)
