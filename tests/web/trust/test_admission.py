"""What a spec over HTTP may not say, and that it learns nothing of this server's disk by trying."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import Client
from jobs.errors import SpecError
from jobs.settings import Settings
from webui.admission import MAX_INLINE_PROMPTS, admit

SPEC: dict[str, Any] = {"model": "tiny-arithmetic", "prompts": ["2+3="]}


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def refused(fields: dict[str, Any], *roots: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        admit(SPEC | fields, Settings(model_roots=roots))
    return caught.value.problems


def folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text("{}")
    return path


def test_what_names_no_file_is_admitted() -> None:
    spec = admit(SPEC | {"adapter": "some-org/some-adapter", "G": 3}, Settings())
    assert (spec.model, spec.adapter, spec.G) == ("tiny-arithmetic", "some-org/some-adapter", 3)
    assert admit({"model": "some-org/m", "dataset": "arithmetic_r1_template"}, Settings()).dataset is not None


@pytest.mark.parametrize("file", ["/etc/passwd", "prompts.jsonl", "-", "", "http://127.0.0.1/"])
def test_no_file_of_the_server(file: str) -> None:
    [problem] = refused({"file": file})
    assert problem.startswith("file: would be a file of the server")


def test_no_dataset_but_the_installed_ones(tmp_path: Path) -> None:
    there = str(folder(tmp_path / "dataset", "state.json"))
    named = {tuple(refused({"dataset": d, "prompts": None})) for d in (f"disk:{there}", "disk:/nothing", "hf:org/name")}
    [(problem,)] = named  # the same sentence whether it exists or not
    assert problem.startswith("dataset: over HTTP only those that the operator has installed")


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_what_exists_and_what_does_not_gets_the_same_sentence(tmp_path: Path, roots: Path, name: str) -> None:
    there = folder(tmp_path / "private", "config.json", "adapter_config.json")
    odd = [
        str(there),
        str(tmp_path / "nothing"),
        f"{roots}/../private",
        "/",
        "~",
        "~root/m",
        "./m",
        "../m",
        f"{roots}-2",
    ]
    assert {tuple(refused({name: value}, roots)) for value in odd} == {
        (f"{name}: is no hub id like org/name, and in no folder that the operator opened (SEQPROC_MODEL_ROOTS)",)
    }


def test_without_roots_there_are_no_local_models(tmp_path: Path) -> None:
    assert len(refused({"model": str(folder(tmp_path / "private", "config.json"))})) == 1


@pytest.mark.parametrize("linked", [False, True])
def test_models_in_the_operators_folders(tmp_path: Path, roots: Path, linked: bool) -> None:
    inside = folder(roots / "mine", "config.json")
    (tmp_path / "link").symlink_to(roots)
    root = tmp_path / "link" if linked else roots
    for name in (inside, root / "mine"):
        assert admit(SPEC | {"model": str(name)}, Settings(model_roots=(root,))).model == str(inside)


def test_a_link_that_leads_out_is_refused_at_submit(tmp_path: Path, roots: Path) -> None:
    (roots / "link").symlink_to(folder(tmp_path / "private", "config.json"))
    settings = Settings(home=tmp_path / "home", model_roots=(roots,))
    spec = admit(SPEC | {"model": str(roots / "link")}, settings)
    with Client(settings) as client, pytest.raises(SpecError, match="lies outside"):
        client.submit(spec)


def test_a_hub_id_is_no_folder_of_the_servers_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "org" / "model", "config.json")
    (tmp_path / "org" / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("org/model", "org/file", "org/nothing"):
        assert admit(SPEC | {"model": name, "adapter": name}, Settings()).model == name


def test_inline_prompts_are_bounded() -> None:
    assert admit(SPEC | {"prompts": ["a"] * MAX_INLINE_PROMPTS}, Settings()).prompts is not None
    [problem] = refused({"prompts": ["a"] * (MAX_INLINE_PROMPTS + 1)})
    assert problem.startswith("prompts: 10,001 are too many")


def test_what_is_wrong_anyway_is_named_as_on_the_command_line() -> None:
    assert any(line.startswith("G: ") for line in refused({"G": 0}))
    assert any("there is no such field" in line for line in refused({"owner": "bob"}))


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    private = str(folder(tmp_path / "private", "config.json"))
    wrong = {"file": "/etc/passwd", "model": private, "adapter": private, "merge_adapter": True, "G": 0, "top_p": 2}
    problems = refused(wrong | {"prompts": ["a"] * (MAX_INLINE_PROMPTS + 1), "owner": "bob"})
    named = [line.partition(":")[0] for line in problems]
    assert named == ["file", "model", "adapter", "prompts", "G", "top_p", "owner"]
