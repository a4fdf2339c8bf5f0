"""Whatever is wrong with a submit: one clear sentence with place and remedy, and everything is as it was before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.client import Client
from tests.cli.conftest import Run

_MODEL = ("--model", "tiny-arithmetic")


def _state(home: Path) -> tuple[list[str], dict[str, str]]:
    """Ids of all rows, and every file of the results root with its digest."""
    with Client() as client:
        ids = [handle.id for handle in client.jobs()]
    files = list((home / "results").rglob("*"))
    return ids, {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in files}


def _file(name: str, lines: list[str]) -> str:
    Path(name).write_text("".join(line + "\n" for line in lines))
    return name


def _malformed() -> str:
    lines = [json.dumps({"prompt": f"{n}"}) for n in range(70_100)]
    lines[70_000] = '{"prompt": "70,001st"'
    return _file("malformed.jsonl", lines)


def _twice() -> str:
    rows = [{"prompt": str(n), "custom_id": f"id-{n % 40}"} for n in range(41)]
    return _file("twice.jsonl", [json.dumps(row) for row in rows])


def _not_utf8() -> str:
    Path("latin.jsonl").write_bytes(b'{"prompt": "fine"}\n{"prompt": "caf\xe9"}\n')
    return "latin.jsonl"


_BAD: dict[str, tuple[Callable[[], list[str]], list[str]]] = {
    # name: (arguments of submit, what the sentence must contain)
    "missing local model": (lambda: ["--model", "./no/such", "--prompts", "a"], ["--model", "./no/such", "folder"]),
    "no model": (lambda: ["--prompts", "a"], ["--model", "required"]),
    "unknown dataset": (
        lambda: [*_MODEL, "--dataset", "gsm9k"],
        ["gsm9k", "gsm8k_r1_template", "arithmetic_r1_template"],
    ),
    "unknown split": (
        lambda: [*_MODEL, "--dataset", "arithmetic_r1_template", "--split", "dev"],
        ["dev", "train", "test"],
    ),
    "more prompts than there are": (
        lambda: [*_MODEL, "--dataset", "arithmetic_r1_template", "--num-prompts", "999999999"],
        ["999,999,999"],
    ),
    "G = 0": (lambda: [*_MODEL, "--prompts", "a", "-G", "0"], ["-G: ", "'0'"]),
    "temperature -1": (lambda: [*_MODEL, "--prompts", "a", "--temperature", "-1"], ["--temperature: ", "'-1'"]),
    "top_p 1.5": (lambda: [*_MODEL, "--prompts", "a", "--top-p", "1.5"], ["--top-p: ", "'1.5'"]),
    "no number": (lambda: [*_MODEL, "--prompts", "a", "--seed", "x"], ["--seed: ", "'x'"]),
    "no such measurement": (
        lambda: [*_MODEL, "--prompts", "a", "--measurements", "kl"],
        ["--measurements: ", "entropies"],
    ),
    "no such diagnostic": (
        lambda: [*_MODEL, "--prompts", "a", "--diagnostics", "margins,kl"],
        ["--diagnostics: ", "top1_probs", "'kl'"],
    ),
    "labels": (lambda: [*_MODEL, "--prompts", "a", "--labels", "x"], ["--labels", "key=value"]),
    "template arguments": (lambda: [*_MODEL, "--prompts", "a", "--chat-template-kwargs", "{x"], ["column 2"]),
    "no prompts": (lambda: [*_MODEL], ["FILE", "--prompts", "--dataset"]),
    "two sources": (lambda: [*_MODEL, "--prompts", "a", "--dataset", "arithmetic_r1_template"], ["prompts", "dataset"]),
    "two files": (lambda: [*_MODEL, "a.jsonl", "--file", "b.jsonl"], ["a.jsonl", "b.jsonl"]),
    "missing file": (lambda: [*_MODEL, "nowhere.jsonl"], ["nowhere.jsonl"]),
    "malformed line": (lambda: [*_MODEL, _malformed()], ["malformed.jsonl:70001"]),
    "unknown field": (
        lambda: [*_MODEL, _file("field.jsonl", ['{"prompt": "a"}', '{"promt": "a"}'])],
        ["field.jsonl:2", "prompt"],
    ),
    "custom_id twice": (lambda: [*_MODEL, _twice()], ["id-0", "twice.jsonl:41", "1"]),
    "empty file": (lambda: [*_MODEL, _file("empty.jsonl", [])], ["empty.jsonl"]),
    "not UTF-8": (lambda: [*_MODEL, _not_utf8()], ["latin.jsonl:2", "UTF-8"]),
    "ragged table": (lambda: [*_MODEL, _file("ragged.csv", ["prompt,answer", "a,1,2"])], ["ragged.csv:2", "3 cells"]),
    "no such column": (
        lambda: [*_MODEL, _file("other.csv", ["q,a", "x,1"]), "--columns", "prompt=question"],
        ["--columns: ", "'question'", "q, a"],
    ),
    "no such field": (lambda: [*_MODEL, "x.csv", "--columns", "promt=q"], ["--columns: ", "'promt'", "prompt,"]),
    "no map": (lambda: [*_MODEL, "x.csv", "--columns", "q"], ["--columns: 'q' is no pair"]),
    "no folder of a dataset": (lambda: [*_MODEL, "--dataset", "disk:nowhere"], ["--dataset: nowhere holds no dataset"]),
    "--local and -d": (lambda: [*_MODEL, "--prompts", "a", "--local"], ["--local", "--detach"]),
    "--json and -q": (lambda: [*_MODEL, "--prompts", "a", "--json", "-q"], ["--json", "--quiet"]),
}


@pytest.mark.parametrize("name", _BAD)
def test_bad_input_is_a_sentence_and_changes_nothing(seqproc: Run, home: Path, submitted: str, name: str) -> None:
    arguments, words = _BAD[name]
    before = _state(home)
    result = seqproc("submit", "-d", *arguments())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    for word in words:
        assert word in result.stderr
    assert _state(home) == before


def test_a_dry_run_finds_the_same_faults(seqproc: Run) -> None:
    result = seqproc("submit", "--dry-run", *_MODEL, _twice())
    assert result.exit_code == 2
    assert "id-0" in result.stderr


def test_all_problems_at_once_one_a_line(seqproc: Run) -> None:
    result = seqproc("submit", "-d", "--prompts", "a", "-G", "0", "--temperature", "-1", "--top-p", "1.5")
    places = [line.split(":")[0] for line in result.stderr.splitlines()[1:]]
    assert places == ["--model", "-G", "--temperature", "--top-p"]


def test_a_results_folder_in_the_way(seqproc: Run, home: Path, submitted: str) -> None:
    """A file stands where the folder should be: true for every user, also for root, who may write anywhere."""
    Path("taken").write_text("mine")
    before = _state(home)
    env = {"SEQPROC_RESULTS_DIR": str(Path("taken/results").absolute())}
    result = seqproc("submit", "-d", *_MODEL, "--prompts", "a", env=env)
    assert result.exit_code == 1
    assert "taken" in result.stderr and "SEQPROC_RESULTS_DIR" in result.stderr
    assert _state(home) == before
    assert Path("taken").read_text() == "mine"


def test_a_database_that_cannot_be_reached(seqproc: Run) -> None:
    Path("file").write_text("")
    result = seqproc("list", env={"SEQPROC_DATABASE_URL": f"sqlite:///{Path('file').absolute()}/x.db"})
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert str(Path("file").absolute()) in result.stderr


@pytest.mark.parametrize(("command", "choices"), [("fetch -o out", "--format"), ("show", "--by"), ("watch", "--track")])
def test_a_choice_that_is_none(seqproc: Run, submitted: str, command: str, choices: str) -> None:
    result = seqproc(*command.split(), submitted, choices, "nope")
    assert result.exit_code == 2
    assert f"Error: Invalid value for '{choices}': 'nope' is not one of '" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        *("status", "watch", "wait", "logs", "cancel", "retry", "fetch -o out", "show", "report", "reward", "stream"),
        "score",
    ],
)
def test_an_unknown_job(seqproc: Run, submitted: str, command: str) -> None:
    result = seqproc(*command.split(), "zzzz")
    assert result.exit_code == 2
    assert "zzzz" in result.stderr
    assert result.stdout == ""
    assert not Path("out").exists()
