"""A model's own code runs only where the operator named that model; nothing in a spec can ask for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sequence_processing
from jobs import Client
from jobs.client import JobHandle
from jobs.errors import SpecError
from jobs.settings import Settings
from jobs.spec import JobSpec
from tests.trust.conftest import change_json
from worker.drain import Drain
from worker.engine import CoreEngine
from worker.stop import Stop

Copy = Callable[..., Path]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(Settings(home=tmp_path / "home", poll_seconds=0.05)) as client:
        yield client


@pytest.fixture(autouse=True)
def own_modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies a model's code to a cache and imports it from there."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def armed(folder: Path, trap: Path, *classes: str) -> Path:
    """The folder, with code that the configs name for `classes`."""
    (folder / "evil.py").write_text(f"import os\nos.mknod({str(trap)!r})\n")
    (folder / "__init__.py").touch()
    names = dict.fromkeys(classes, "evil.Evil")
    for file in ("config.json", "tokenizer_config.json"):
        change_json(folder / file, auto_map=names)
    return folder


def drain(client: Client, trusted: list[str], **spec: Any) -> tuple[JobHandle, str | None]:
    """Submit, and let a worker of this process try: (the job, why the worker cannot go on)."""
    job = client.submit(**{"prompts": ["2+3="], "G": 1, "max_new_tokens": 4, "seed": 1} | spec)
    why = Drain(client.store, client.settings, CoreEngine(trusted), "w", ["default"], Stop()).until_idle()
    job.refresh()
    return job, why


def test_code_of_an_unknown_architecture_does_not_run(client: Client, copy_model: Copy, trap: Path) -> None:
    folder = armed(copy_model("model", model_type="homemade"), trap, "AutoConfig", "AutoModelForCausalLM")
    job, why = drain(client, [], model=str(folder))
    assert "needs code of its own, which is not allowed here" in str(why)
    assert (job.record.state, job.record.failed_shards) == ("running", 0), "another worker may trust it"
    assert not trap.exists()


def test_the_same_code_runs_where_it_is_trusted(client: Client, copy_model: Copy, trap: Path) -> None:
    """Or the test above would show nothing."""
    folder = armed(copy_model("model", model_type="homemade"), trap, "AutoConfig", "AutoModelForCausalLM")
    drain(client, [str(folder)], model=str(folder))
    assert trap.exists()


@pytest.mark.parametrize("others", [[], ["some-org/other", "model", "*"]])
def test_code_beside_a_known_architecture_does_not_run(
    client: Client, copy_model: Copy, trap: Path, others: list[str]
) -> None:
    folder = armed(copy_model("model"), trap, "AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    job, _ = drain(client, others, model=str(folder))
    assert job.record.state == "succeeded", "by the architecture of transformers itself"
    assert not trap.exists()


@pytest.mark.parametrize(
    ("revision", "trusted", "may"),
    [
        (None, "org/model", True),
        ("refs/pr/7", "org/model", False),  # anyone may open a pull request on a model that others trust
        ("5f0b02c", "org/model", False),
        ("5f0b02c", "org/model@5f0b02c", True),
        (None, "org/model@5f0b02c", False),
    ],
)
def test_trust_is_in_what_the_owner_publishes(
    client: Client, monkeypatch: pytest.MonkeyPatch, revision: str | None, trusted: str, may: bool
) -> None:
    asked: list[bool] = []

    def load_model(name: str, **options: Any) -> Any:
        asked.append(options["trust_remote_code"])
        raise sequence_processing.ModelError("enough seen", permanent=True)

    monkeypatch.setattr(sequence_processing, "load_model", load_model)
    drain(client, [trusted], model="org/model", revision=revision)
    assert asked == [may]


def test_a_spec_cannot_ask_for_it() -> None:
    with pytest.raises(SpecError, match="trust_remote_code: there is no such field"):
        JobSpec.parse({"model": "tiny-arithmetic", "prompts": ["x"], "trust_remote_code": True})
