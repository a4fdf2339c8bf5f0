"""What the page says to run makes the same job: the command in a real shell, the program as Python reads it."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from typer.testing import CliRunner

from jobs.cli.app import app
from jobs.snapshot import SnapshotRow
from jobs.spec import JobSpec
from webui.pages.recipe import as_command, as_python, few_texts

SPECS: list[dict[str, Any]] = [
    {},
    {"G": 3, "temperature": 0.5, "max_new_tokens": 5, "seed": 42, "name": 'a b\'s "c" $HOME `id` \\ é\u202e\x1b[2J\n'},
    {"labels": {"run": "1", "k'": "=v \U0001f600"}, "queue": "gpu", "priority": -3, "ttl": 0.5},
    {"do_sample": False, "ignore_eos": True, "deterministic": True, "gen_batch_size": 4, "dtype": "float32"},
    {"stop_strings": [], "measurements": []},
    {"diagnostics": ["margins", "eos_probs"], "top_k_alternatives": 3},
    {"stop_strings": ["-x", "a\tb", "#"], "measurements": ["entropies"], "chat_template_kwargs": {"a": [1, None, "'"]}},
    {"dataset": "arithmetic_r1_template", "split": "test", "num_prompts": 4, "prompt_seed": 9},
    {"dataset": "arithmetic_r1_template"},
    {"dataset": "arithmetic_r1_template", "num_prompts": 4, "replacement": True},
    {"dataset": "arithmetic_r1_template", "num_prompts": 4, "replacement": True, "G": 8},
    {"rewards": ["math_answer"], "resample_equal": 2},
    {"kind": "score"},
    {"webhook": "https://hooks.example/secret", "idempotency_key": "k"},
]
NOT_TOLD = {"webhook": None, "idempotency_key": None, "file": None, "prompts": None}


def spec_of(fields: dict[str, Any]) -> JobSpec:
    return JobSpec.parse({"model": "org/model", **fields}).resolve()


def arguments(command: str) -> list[str]:
    """What a shell makes of a command line that begins with `seqproc`."""
    shell = f'seqproc() {{ printf "%s\\0" "$@"; }}\n{command}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("fields", SPECS, ids=str)
@pytest.mark.parametrize("texts", [None, ["2+2=", "-1 + 1 = ' \\"]])
def test_the_command_makes_the_same_job(fields: dict[str, Any], texts: list[str] | None, tmp_path: Any) -> None:
    if fields.keys() & {"dataset", "kind"} and texts:
        return
    spec = spec_of(fields)
    words = arguments(as_command(spec, texts))
    row = {"prompt": "x"} | ({"response": "y"} if spec.kind == "score" else {})
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    words = [str(tmp_path / word) if word == "prompts.jsonl" else word for word in words]
    result = CliRunner().invoke(app, [*words, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["spec"] | NOT_TOLD == spec.stored() | NOT_TOLD | {"prompts": None}
    if texts:
        assert plan["num_prompts"] == len(texts)


def test_a_dataset_on_disk_with_odd_columns(tmp_path: Path) -> None:
    Dataset.from_dict({"a, b": ["x"], "it's": [1]}).save_to_disk(tmp_path / "disk")
    spec = spec_of({"dataset": f"disk:{tmp_path / 'disk'}", "columns": {"prompt": "a, b", "answer": "it's"}})
    result = CliRunner().invoke(app, [*arguments(as_command(spec, None)), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["spec"] == spec.stored()
    assert f"columns={spec.columns!r}" in as_python(spec, None)
    of_a_file = spec_of({"file": "p.csv", "columns": {"prompt": "q"}})
    assert "columns" not in as_command(of_a_file, None), "the prompts to submit again have the fields' own names"


@pytest.mark.parametrize("fields", SPECS, ids=str)
def test_the_program_makes_the_same_job(fields: dict[str, Any]) -> None:
    spec = spec_of(fields)
    texts = None if fields.keys() & {"dataset", "kind"} else ["2+2=", "'\"\\"]
    [call] = [
        node for node in ast.walk(ast.parse(as_python(spec, texts))) if isinstance(node, ast.Call) and node.keywords
    ]
    given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert given.pop("prompts", None) == texts
    if spec.kind == "score":
        assert given.pop("file") == "prompts.jsonl"
    assert JobSpec.parse(given).resolve().stored() | NOT_TOLD == spec.stored() | NOT_TOLD


def test_a_control_character_reaches_neither_text_raw() -> None:
    spec = spec_of(SPECS[1])
    for recipe in (as_command(spec, None), as_python(spec, None)):
        assert "\u202e" not in recipe and "\x1b" not in recipe


def test_a_score_names_its_source_and_needs_no_file() -> None:
    spec = spec_of({"kind": "score", "source": "0123456789ab", "tokenizer": "any", "temperature": 0.7})
    words = arguments(as_command(spec, None))
    assert words[:1] == ["submit"] and "prompts.jsonl" not in words
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert (given["--source"], given["--tokenizer"], given["--temperature"]) == ("0123456789ab", "any", "0.7")
    assert "source='0123456789ab'" in as_python(spec, None) and "file" not in as_python(spec, None)


def test_few_short_texts_stand_in_the_command_and_nothing_else_does() -> None:
    def row(number: int, **changes: Any) -> SnapshotRow:
        return SnapshotRow(**{"prompt_index": number, "custom_id": str(number), "prompt": "x", **changes})

    assert few_texts([row(0), row(1)]) == ["x", "x"]
    assert few_texts([row(n) for n in range(5)]) is None
    for changes in ({"answer": "1"}, {"custom_id": "a"}, {"prompt": None, "messages": [{}]}, {"prompt": "a\nb"}):
        assert few_texts([row(0), row(1, **changes)]) is None
    assert few_texts([row(0, prompt="x" * 301)]) is None
