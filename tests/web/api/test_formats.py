"""Other people's formats through both clients: over HTTP, what lies on the caller's side is read there and sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from jobs import Client
from jobs.errors import SpecError
from tests.house import House

FIELDS: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "shard_size": 2}
MAP = {"prompt": "question", "answer": "gold"}


@pytest.fixture
def disk(tmp_path: Path) -> str:
    rows = datasets.Dataset.from_dict({"question": [f"q{i} é" for i in range(9)], "gold": list(range(9))})
    rows.save_to_disk(tmp_path / "disk")
    return f"disk:{tmp_path / 'disk'}"


def test_a_dataset_on_the_callers_disk(client: Client, local: Client, house: House, disk: str) -> None:
    job = client.submit(dataset=disk, columns=MAP, num_prompts=4, seed=5, prompt_seed=6, **FIELDS)
    here = local.submit(dataset=disk, columns=MAP, num_prompts=4, seed=5, prompt_seed=6, **FIELDS)
    house.finish(local.get(here.id).record)
    house.finish(local.get(job.id).record)
    rows = [(row["custom_id"], row["prompt"], row["answer"]) for row in job.rows()]
    assert rows == [(row["custom_id"], row["prompt"], row["answer"]) for row in here.rows()]
    assert len(set(rows)) == 4
    assert job.record.spec["seed"] == 5


def test_a_table_and_a_plan(client: Client, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("question,gold,level\na,1,x\nb,2,y\n")
    fields = FIELDS | {"file": str(tmp_path / "p.csv"), "columns": MAP}
    assert client.plan(**fields).num_prompts == 2
    job = client.submit(**fields)
    assert (job.record.num_prompts, job.ignored_columns) == (2, ["level"])


def test_problems_are_the_same_sentences(client: Client, tmp_path: Path, disk: str) -> None:
    (tmp_path / "ragged.csv").write_text("prompt\na,b\n")
    line = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "x"}], "temperature": 0.5}}
    (tmp_path / "batch.jsonl").write_text(json.dumps(line))
    for fields, says in (
        ({"file": str(tmp_path / "ragged.csv")}, r"ragged\.csv:2: has 2 cells, not one for each of the header's 1"),
        ({"file": str(tmp_path / "batch.jsonl")}, r"batch\.jsonl:1 body\.temperature: .*submit with temperature=0\.5"),
        ({"dataset": disk, "columns": {"prompt": "quest"}}, "no row has such a column; there are question, gold"),
        ({"dataset": disk, "num_prompts": 10, "columns": MAP}, "has 9 prompts in split train, not 10"),
        ({"dataset": "disk:/nowhere"}, "/nowhere holds no dataset that can be read"),
    ):
        with pytest.raises(SpecError, match=says):
            client.submit(**FIELDS, **fields)
    assert client.jobs() == []


def test_results_in_other_forms(client: Client, local: Client, house: House) -> None:
    job = client.submit(prompts=["a", "bad", "c"], **FIELDS)
    house.finish(local.get(job.id).record)
    assert list(job.to_openai()) == list(local.get(job.id).to_openai())
    assert list(job.to_trl(prompts=1)) == list(local.get(job.id).to_trl(prompts=1))
    assert [line["error"] is None for line in job.to_openai()] == [True, False, True]


def test_responses_to_score_whose_lines_ask_for_one_each(client: Client, tmp_path: Path) -> None:
    line = {"custom_id": "a", "response": "5", "body": {"prompt": "2+3=", "n": 1}}
    (tmp_path / "batch.jsonl").write_text(json.dumps(line))
    job = client.submit(model="tiny-arithmetic", kind="score", file=str(tmp_path / "batch.jsonl"))
    assert job.record.num_sequences == 1


def test_draws_with_replacement(client: Client, local: Client, house: House, tmp_path: Path, disk: str) -> None:
    """Of what lies on the caller's side, and of what the server has: as a local submit draws them."""
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(5)))
    draws = {"model": "tiny-arithmetic", "num_prompts": 7, "replacement": True, "seed": 5, "shard_size": 2}
    sources: tuple[dict[str, Any], ...] = (
        {"file": str(tmp_path / "p.jsonl")},
        {"dataset": disk, "columns": MAP},
        {"dataset": "arithmetic_r1_template"},
        {"prompts": ["a", "b"]},
    )
    for source in sources:
        assert client.plan(**draws, **source).num_sequences == 7
        names = []
        for submitted in (client.submit(**draws, **source), local.submit(**draws, **source)):
            job = local.get(submitted.id)
            assert (job.record.num_prompts, job.record.num_sequences) == (7, 7)
            house.finish(job.record)
            names.append([(row["custom_id"], row["prompt"]) for row in job.rows()])
        assert names[0] == names[1]
        assert len({custom_id for custom_id, _ in names[0]}) == 7
