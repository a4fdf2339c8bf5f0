"""What a newcomer types first: help, versions, things misspelt."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.cli.spec_options import flag
from jobs.spec import JobSpec
from tests.cli.conftest import Run

_HEAVY = {"torch", "transformers", "celery", "datasets", "pyarrow", "sqlalchemy", "alembic", "pandas", "numpy", "peft"}
_HEAVY |= {"wandb", "tensorboard", "mlflow"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['seqproc', '--help']\nfrom jobs.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print('exit', end.code, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, modules = done.stdout.rpartition("exit 0 ")
    assert "submit" in text and "worker" in text
    assert not _HEAVY & set(modules.split())


def test_python_m_jobs_is_seqproc() -> None:
    done = subprocess.run([sys.executable, "-m", "jobs", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("seqproc ")


@pytest.mark.parametrize(
    "command",
    [
        "submit",
        "list",
        "ls",
        "status",
        "watch",
        "wait",
        "logs",
        "cancel",
        "retry",
        "fetch",
        "show",
        "worker",
        "workers",
        "doctor",
        "db",
    ],
)
def test_every_command_has_help(seqproc: Run, command: str) -> None:
    result = seqproc(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: seqproc {command}")


def test_flags_of_submit_are_the_fields_of_the_spec(seqproc: Run) -> None:
    words = set(seqproc("submit", "--help", env={"COLUMNS": "200"}).stdout.split())
    assert {flag(name) for name in JobSpec.model_fields} <= words
    assert {"--no-do-sample", "--stop-strings", "-d,", "--detach"} <= words


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("lst", "'list'"),
        ("sumbit --model m", "'submit'"),
        ("submit --temprature 1", "--temperature"),
        ("list --quite", "--quiet"),
    ],
)
def test_a_misspelt_word_suggests_the_near_one(seqproc: Run, line: str, near: str) -> None:
    result = seqproc(*line.split())
    assert result.exit_code == 2
    assert near in result.stderr
    assert result.stdout == ""


def test_a_broken_plugin_takes_no_command_along() -> None:
    code = (
        "import importlib.metadata as m\n"
        "real = m.entry_points\n"
        "broken = m.EntryPoint('broken', 'no_such_module:x', 'seqproc.commands')\n"
        "m.entry_points = lambda **of: [*real(**of), broken]\n"
        "import sys; sys.argv = ['seqproc', '--version']\n"
        "from jobs.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("seqproc ")
    assert "seqproc broken is not available" in done.stderr


def test_an_unforeseen_failure_is_one_sentence(seqproc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("jobs.client.Client.__init__", explode)
    result = seqproc("list")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: KeyError: 'surprise'")
    assert "SEQPROC_DEBUG=1" in result.stderr


def test_a_wrong_setting_names_its_variable(seqproc: Run) -> None:
    result = seqproc("list", env={"SEQPROC_LEASE_SECONDS": "soon"})
    assert result.exit_code == 2
    assert "SEQPROC_LEASE_SECONDS" in result.stderr
