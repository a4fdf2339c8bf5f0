"""Prompts from tables and from datasets that nobody registered: column maps, drawing, and what cannot be had."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from jobs.errors import SpecError
from jobs.prompts import PromptSource
from jobs.spec import JobSpec, PromptRow
from rlp_datasets import DatasetError, DatasetUnavailableError, UnknownSplitError, open_dataset
from tests.unit.jobs.test_prompts import problems_of, spec, take

ROWS = {"question": [f"q{i} é😀" for i in range(20)], "gold": list(range(20)), "tag": ["x"] * 20}
MAP = {"prompt": "question", "answer": "gold"}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A DatasetDict on disk, as its own library writes it."""
    train = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict({"train": train, "test": train.select(range(3))}).save_to_disk(tmp_path / "disk")
    return tmp_path / "disk"


class TestColumns:
    def test_a_table_by_other_names(self, tmp_path: Path) -> None:
        file = tmp_path / "p.csv"
        file.write_text("prompt,question,answer,gold,id,level\nunused,2+3=,no,5,a,1\nunused,1+1=,no,,b,2\n")
        source = PromptSource(spec(file=str(file), columns=MAP | {"custom_id": "id"}))
        assert take(tmp_path, source) == [
            PromptRow(custom_id="a", prompt="2+3=", answer="5"),
            PromptRow(custom_id="b", prompt="1+1="),
        ]
        assert source.ignored_columns == ["level"]

    def test_two_columns_may_change_places(self, tmp_path: Path) -> None:
        source = PromptSource(
            spec(columns={"prompt": "answer", "answer": "prompt"}), prompts=[{"prompt": "4", "answer": "2 + 2"}]
        )
        assert take(tmp_path, source) == [PromptRow(prompt="2 + 2", answer="4")]

    def test_numbers_are_texts_where_a_field_is_one(self, tmp_path: Path) -> None:
        rows = [{"question": "q", "gold": 7, "id": 12}, {"question": "r", "gold": 0.5, "id": 13}]
        source = PromptSource(spec(columns=MAP | {"custom_id": "id"}), prompts=rows)
        assert [(row.custom_id, row.answer) for row in take(tmp_path, source)] == [("12", "7"), ("13", "0.5")]
        assert problems_of(tmp_path, PromptSource(spec(columns=MAP), prompts=[{"question": "q", "gold": True}])) == [
            "prompts[0] answer: input should be a valid string, not True"
        ]

    def test_a_missing_column_is_the_one_problem_and_says_what_there_is(self, tmp_path: Path) -> None:
        file = tmp_path / "p.csv"
        file.write_text("question,answer\n" + "a,1\n" * 500)
        found = problems_of(tmp_path, PromptSource(spec(file=str(file), columns={"prompt": "quesiton"})))
        assert found == [
            "columns: prompt is to come from 'quesiton', but no row has such a column; there are question, answer"
        ]

    def test_of_lines_that_differ_a_column_need_not_be_in_all(self, tmp_path: Path) -> None:
        rows: list[Any] = [{"question": "q"}, {"question": "r", "gold": "1"}, {"gold": "2"}]
        assert problems_of(tmp_path, PromptSource(spec(columns=MAP), prompts=rows)) == [
            "prompts[2] give exactly one of prompt, messages, prompt_token_ids; this row has none of them"
        ]

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"columns": {"promt": "q"}}, "columns: a prompt has no field 'promt'; its fields are custom_id, prompt"),
            ({"columns": {"prompt": ""}}, "columns: prompt is given no column"),
            ({"columns": MAP, "dataset": "arithmetic_r1_template"}, "columns are of files and of hf: and disk:"),
        ],
    )
    def test_a_wrong_map(self, fields: dict[str, Any], says: str) -> None:
        with pytest.raises(SpecError, match=says):
            spec(**fields)

    def test_how_prompts_came_in_makes_no_other_job(self) -> None:
        assert spec(columns=MAP).digest() == spec().digest()


class TestDisk:
    def test_every_row_of_a_split(self, disk: Path, tmp_path: Path) -> None:
        source = PromptSource(spec(dataset=f"disk:{disk}", split="test", columns=MAP))
        assert take(tmp_path, source) == [
            PromptRow(custom_id=f"test-{i}", prompt=ROWS["question"][i], answer=str(i)) for i in range(3)
        ]
        assert source.ignored_columns == ["tag"]

    def test_some_are_drawn_as_from_a_registered_one(self, disk: Path, tmp_path: Path) -> None:
        source = PromptSource(spec(dataset=f"disk:{disk}", num_prompts=5, prompt_seed=9, columns=MAP))
        drawn = random.Random(9).sample(range(20), 5)
        assert [row.custom_id for row in take(tmp_path, source)] == [f"train-{i}" for i in drawn]

    def test_ids_of_its_own_and_responses_to_score(self, tmp_path: Path) -> None:
        rows = datasets.Dataset.from_dict({"prompt": ["a", "b"], "response": ["1", "2"], "custom_id": ["x", None]})
        rows.save_to_disk(tmp_path / "one")
        found = spec(dataset=f"disk:{tmp_path / 'one'}", kind="score", num_prompts=2)
        assert found.prompt_seed == found.seed
        taken = sorted(take(tmp_path, PromptSource(found)), key=lambda row: row.prompt or "")
        assert taken == [
            PromptRow(custom_id="x", prompt="a", response="1"),
            PromptRow(custom_id="train-1", prompt="b", response="2"),
        ]

    def test_chats_and_token_ids(self, tmp_path: Path) -> None:
        chat = [{"role": "user", "content": "hi"}]
        datasets.Dataset.from_dict({"chat": [chat], "n": [1]}).save_to_disk(tmp_path / "chats")
        datasets.Dataset.from_dict({"prompt_token_ids": [[5, 6]]}).save_to_disk(tmp_path / "ids")
        found = PromptSource(spec(dataset=f"disk:{tmp_path / 'chats'}", columns={"messages": "chat"}))
        assert [row.messages for row in take(tmp_path / "a", found)] == [chat]
        found = PromptSource(spec(dataset=f"disk:{tmp_path / 'ids'}"))
        assert [row.prompt_token_ids for row in take(tmp_path / "b", found)] == [[5, 6]]

    @pytest.mark.parametrize("damage", ["missing", "no dataset", "cut short"])
    def test_what_cannot_be_read(self, disk: Path, tmp_path: Path, damage: str) -> None:
        folder = {"missing": tmp_path / "nowhere", "no dataset": tmp_path}.get(damage, disk)
        for arrow in disk.glob("train/*.arrow"):
            arrow.write_bytes(arrow.read_bytes()[:100])
        with pytest.raises(SpecError, match=r"^dataset: .* holds no dataset that can be read: .* save_to_disk wrote"):
            PromptSource(spec(dataset=f"disk:{folder}"))._rows.__next__()

    def test_no_such_split(self, disk: Path) -> None:
        with pytest.raises(UnknownSplitError, match=r"has no split 'val'\. It has: train, test"):
            open_dataset(f"disk:{disk}", "val")


class TestHub:
    """Without network: `datasets` itself reads what an earlier day left in its cache."""

    @pytest.fixture
    def cached(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The hub's dataset `org/sums`, configuration `main`, as `load_dataset` keeps it."""
        from datasets.packaged_modules.json.json import Json

        source = tmp_path / "sums.jsonl"
        source.write_text("".join(json.dumps({"question": q, "gold": "1"}) + "\n" for q in ("a", "b")))
        cache = tmp_path / "cache"
        builder = Json(
            cache_dir=str(cache),
            dataset_name="sums",
            config_name="main",
            data_files={"test": str(source)},
            hash="0" * 40,
        )
        builder.download_and_prepare()
        shutil.copytree(builder.cache_dir, cache / "org___sums" / "main" / "0.0.0" / ("0" * 40))
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.chdir(tmp_path)

    @pytest.mark.usefixtures("cached")
    def test_name_configuration_and_split(self, tmp_path: Path) -> None:
        source = PromptSource(spec(dataset="hf:org/sums:main", split="test", columns=MAP))
        assert take(tmp_path, source) == [
            PromptRow(custom_id=f"test-{i}", prompt=q, answer="1") for i, q in enumerate("ab")
        ]
        with pytest.raises(UnknownSplitError, match=r"'hf:org/sums:main' has no split 'train'\. It has: test"):
            open_dataset("hf:org/sums:main")

    @pytest.mark.usefixtures("cached")
    def test_no_such_dataset_and_no_network(self) -> None:
        with pytest.raises(DatasetUnavailableError, match=r"hf:org/none cannot be loaded from the hub: .*disk:FOLDER"):
            open_dataset("hf:org/none")

    @pytest.mark.parametrize("name", ["hf:", "hf:../x", "hf:a/b/c", "hf:/etc", "hf:a..b", "hf::main", "hf:https://x"])
    def test_what_is_no_name(self, name: str) -> None:
        with pytest.raises(DatasetError, match="names no dataset of the hub"):
            open_dataset(name)

    def test_a_folder_here_is_not_taken_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "org" / "sums").mkdir(parents=True)
        with pytest.raises(DatasetError, match="would be read from the folder org/sums here"):
            open_dataset("hf:org/sums")

    def test_a_script_of_a_dataset_is_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "evil"
        folder.mkdir()
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        monkeypatch.chdir(tmp_path)
        for name in ("hf:evil", "disk:evil"):
            with pytest.raises(DatasetError):
                open_dataset(name)
        assert not (tmp_path / "ran").exists()


def test_a_spec_with_such_a_dataset_is_stored_and_read_back() -> None:
    found = spec(dataset="hf:org/sums:main", columns=MAP)
    assert JobSpec.of_stored(found.stored()) == found
