"""Local models and adapters come from the operator's folders only, whatever links and names say."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import Client
from jobs.cli.app import app
from jobs.errors import SpecError
from jobs.model_roots import outside_roots
from jobs.settings import Settings
from worker.drain import Drain
from worker.engine import CoreEngine
from worker.stop import Stop

Copy = Callable[..., Path]


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """The operator's folder. `tmp_path/private` lies outside it."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def client(tmp_path: Path, roots: Path) -> Iterator[Client]:
    with Client(Settings(home=tmp_path / "home", model_roots=(roots,), poll_seconds=0.05)) as client:
        yield client


def submit(client: Client, **spec: str) -> None:
    client.submit(**{"model": "tiny-arithmetic", "prompts": ["2+3="], "G": 1, "max_new_tokens": 4, "seed": 1} | spec)


class TestSubmit:
    def test_what_lies_outside_is_refused_before_anything_is_stored(
        self, client: Client, copy_model: Copy, roots: Path
    ) -> None:
        private = copy_model("private")
        (private / "adapter_config.json").write_text("{}")
        for spec in ({"model": str(private)}, {"adapter": str(private)}, {"model": f"{roots}/../private"}):
            (name,) = spec
            with pytest.raises(SpecError) as caught:
                submit(client, **spec)
            assert str(caught.value) == (
                f"{name}: {private} lies outside the folders that models may come from ({roots}); "
                "see SEQPROC_MODEL_ROOTS"
            )
        assert client.jobs() == []
        assert not client.settings.results.exists()

    def test_what_lies_inside_and_what_is_no_folder_is_not(self, client: Client, copy_model: Copy) -> None:
        for model in (str(copy_model("models/mine")), "some-org/some-model", "tiny-arithmetic"):
            submit(client, model=model)
        submit(client, adapter="some-org/some-adapter")
        assert len(client.jobs()) == 4

    def test_a_neighbour_whose_name_begins_alike(self, client: Client, copy_model: Copy) -> None:
        with pytest.raises(SpecError, match="lies outside"):
            submit(client, model=str(copy_model("models-of-others")))

    def test_a_link_that_leads_out(self, client: Client, copy_model: Copy, roots: Path) -> None:
        (roots / "link").symlink_to(copy_model("private"))
        with pytest.raises(SpecError, match="private lies outside"):
            submit(client, model=str(roots / "link"))

    def test_weights_that_are_a_link_that_leads_out(self, client: Client, copy_model: Copy, roots: Path) -> None:
        private, mine = copy_model("private"), copy_model("models/mine")
        (mine / "model.safetensors").unlink()
        (mine / "model.safetensors").symlink_to(private / "model.safetensors")
        with pytest.raises(SpecError, match=r"mine/model\.safetensors lies outside"):
            submit(client, model=str(mine))

    def test_links_inside_are_how_the_hubs_cache_works(self, copy_model: Copy, roots: Path) -> None:
        blobs, snapshot = copy_model("models/blobs"), roots / "snapshot"
        snapshot.mkdir()
        for file in blobs.iterdir():
            (snapshot / file.name).symlink_to(file)
        assert outside_roots(snapshot, [roots]) is None

    def test_the_command_line_names_its_flag(
        self, copy_model: Copy, roots: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SEQPROC_MODEL_ROOTS", f"{roots}, {roots}-too")
        asked = ["submit", "--model", str(copy_model("private")), "--prompts", "x"]
        for extra in (["-d"], ["--dry-run"]):
            result = CliRunner().invoke(app, [*asked, *extra])
            assert result.exit_code == 2
            assert "--model: " in result.stderr and f"({roots}, {roots}-too); see SEQPROC_MODEL_ROOTS" in result.stderr


class TestWorker:
    def drained(self, client: Client, roots: Path) -> str:
        """Why a worker with these roots cannot go on."""
        engine = CoreEngine(model_roots=(roots,))
        return str(Drain(client.store, client.settings, engine, "w", ["default"], Stop()).until_idle())

    def test_refuses_what_a_client_without_roots_submitted(
        self, tmp_path: Path, client: Client, copy_model: Copy, roots: Path
    ) -> None:
        with Client(Settings(home=tmp_path / "home")) as careless:
            submit(careless, model=str(copy_model("private")))
        assert "private lies outside the folders" in self.drained(client, roots)
        (job,) = client.jobs()
        assert (job.record.state, job.record.failed_shards) == ("running", 0), "another worker may have other roots"
        assert "lies outside" in str(job.record.notice)

    def test_refuses_a_folder_that_became_a_link(self, client: Client, copy_model: Copy, roots: Path) -> None:
        private, mine = copy_model("private"), copy_model("models/mine")
        submit(client, model=str(mine))
        shutil.rmtree(mine)
        mine.symlink_to(private)
        assert "lies outside" in self.drained(client, roots)

    def test_refuses_a_folder_that_bears_a_hub_id(
        self, tmp_path: Path, client: Client, copy_model: Copy, roots: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the worker stands, a hub id may be a folder."""
        submit(client, model="some-org/some-model")
        copy_model("here/some-org/some-model")
        monkeypatch.chdir(tmp_path / "here")
        assert "some-org/some-model lies outside" in self.drained(client, roots)

    def test_runs_what_lies_inside(self, client: Client, copy_model: Copy, roots: Path) -> None:
        submit(client, model=str(copy_model("models/mine")))
        assert self.drained(client, roots) == "None"
        assert client.jobs()[0].record.state == "succeeded"
