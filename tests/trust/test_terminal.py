"""Hostile text reaches no terminal raw, through no command, with colours or without.

Every command of the application is tried; one that is new fails here until it is said how to try it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import Client
from jobs.cli import doctor
from jobs.cli.app import app
from jobs.paths import worker_log
from jobs.processes import this_process
from tests.cli.conftest import COLOUR, do_shard, row
from tests.terminal import steering

HOSTILE = "a\x1b[2J\x1b]0;owned\x07b\u202eevil\u2066\x9b31mc\r\x08[bold red]d[/]\x85e\u2028f\u200f"
OURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")  # colours and the progress bar's own movements, where there may be any

# A command line for each command: what it does with JOB, a finished job that is hostile wherever it can be.
TRIED = {
    "submit": "submit --dry-run --model m --prompts x --name HOSTILE --labels k=HOSTILE",
    "list": "list",
    "ls": "ls",
    "status": "status JOB",
    "watch": "watch JOB",
    "wait": "wait JOB",
    "logs": "logs JOB",
    "cancel": "cancel JOB",
    "retry": "retry JOB",
    "fetch": "fetch JOB -o HOSTILE",
    "show": "show JOB",
    "report": "report JOB",
    "reward": "reward --reward tag_format JOB",
    "stream": "stream JOB",
    "score": "score --dry-run --name HOSTILE JOB",
    "workers": "workers",
    "doctor": "doctor",
    "gc": "gc",
    "delete": "delete --yes JOB",
    "upgrade": "db upgrade",
}
PROCESSES = {"worker", "web", "up"}  # they log, see below
# Nothing of the job is shown by these, however hostile it is.
SILENT = {"cancel", "retry", "delete", "gc", "upgrade", "watch", "wait", "reward"}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The id of a job with hostile name, labels, model, prompt, response, answer, error, notice and log lines."""
    monkeypatch.chdir(tmp_path)
    with Client() as client:
        made = client.submit(
            model="tiny-arithmetic",
            prompts=[{"prompt": HOSTILE, "custom_id": HOSTILE, "answer": HOSTILE}, "y"],
            G=1,
            seed=1,
            name=HOSTILE,
            labels={HOSTILE: HOSTILE},
        )
        named = replace(this_process(), host=f"elsewhere {HOSTILE}")
        client.store.register_worker("test-worker", named, queues=["default", HOSTILE], device=HOSTILE)
        client.store.worker_beat("test-worker", model=HOSTILE, paused=HOSTILE)
        text = {"prompt": HOSTILE, "response": HOSTILE, "custom_id": HOSTILE, "answer": HOSTILE}
        errors = [{"prompt_index": 1, "sample_index": None, "custom_id": HOSTILE, "error": HOSTILE}]
        do_shard(client, made.id, [row(0, 0, token_ends=[5, len(HOSTILE)], **text)], errors)
        log = worker_log(client.settings.results, "test-worker")
        log.parent.mkdir(exist_ok=True)
        line = {"time": 1.0, "level": HOSTILE, "worker": HOSTILE, "job": made.id, "shard": 0, "attempt": HOSTILE}
        log.write_text(json.dumps(line | {"message": HOSTILE, "traceback": f"{HOSTILE}\n{HOSTILE}"}) + "\n")
        yield made.id


def assert_harmless(output: str, *, ours: bool) -> None:
    """Nothing in it steers a terminal; `ours`: apart from what a coloured display is made of."""
    for piece in ("\x1b[2J", "\x1b]", "\x9b"):
        assert piece not in output
    assert steering(OURS.sub("", output) if ours else output) == [], repr(output)


def commands() -> list[str]:
    own = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    grouped = [
        command.name or command.callback.__name__
        for group in app.registered_groups
        if group.typer_instance is not None
        for command in group.typer_instance.registered_commands
        if command.callback
    ]
    return own + grouped


def test_every_command_is_tried() -> None:
    assert set(commands()) - PROCESSES <= TRIED.keys()


@pytest.fixture
def hostile_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `doctor` asks of a child, without loading torch there."""
    answer = json.dumps({"torch": "2", "gpus": [HOSTILE], "threads": 1})
    monkeypatch.setattr(doctor, "_DEVICES", f"print({answer!r})")


@pytest.mark.parametrize("command", [name for name in commands() if name not in PROCESSES])
@pytest.mark.parametrize("form", ["plain", "colour", "json"])
def test_hostile_text_is_disarmed(job: str, hostile_device: None, command: str, form: str) -> None:
    words = [word.replace("HOSTILE", HOSTILE).replace("JOB", job) for word in TRIED[command].split()]
    if form == "json":
        words.append("--json")
    env = COLOUR if form == "colour" else {"NO_COLOR": "1", "COLUMNS": "300"}
    result = CliRunner().invoke(app, words, env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert_harmless(result.output, ours=form == "colour")
    if form == "json":
        assert result.stdout.isascii()
    elif command not in SILENT:
        assert "bold red" in result.output, "the text was there to be shown, and not taken for markup"


def test_a_hostile_question_is_answered_harmlessly(job: str) -> None:
    """Names that do not exist, values that do not parse: the error repeats them."""
    for words in (
        ["status", HOSTILE + "x"],
        ["list", "--state", HOSTILE],
        ["submit", "--model", f"/{HOSTILE}", "--prompts", "x", "-d"],
        ["submit", "--model", "m", "--prompts", "x", "--queue", HOSTILE],
        ["submit", "--model", "m", "--dataset", HOSTILE, "-d"],
        ["submit", f"{HOSTILE}.jsonl", "--model", "m", "-d"],
        ["fetch", job, "-o", "/dev/null/" + HOSTILE.replace("/", "")],
        [HOSTILE],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code != 0
        assert_harmless(result.output, ours=False)
