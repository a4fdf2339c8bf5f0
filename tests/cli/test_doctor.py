"""`doctor`: what is there, what is missing, a line each; nothing hangs it and no password leaves it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.client import Client
from jobs.processes import this_process
from tests.cli.conftest import Run, the_json

_NO_TORCH = """print('{"torch": "?", "gpus": [], "threads": 1}')"""  # a quicker answer of doctor's child
_OK = ["version", "folder", "settings", "database", "broker", "results", "workers", "queues", "datasets", "models"]
_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of models of the test's own, which is not there yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices are not looked for."""
    monkeypatch.setattr("jobs.cli.doctor._DEVICES", _NO_TORCH)


def checks(seqproc: Run, **env: str) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in the_json(seqproc("doctor", "--json", env=env))}


def test_all_is_well(seqproc: Run, client: Client) -> None:
    found = checks(seqproc)
    assert {name: check["verdict"] for name, check in found.items()} == dict.fromkeys([*_OK, "devices"], "ok")
    assert "thread" in found["devices"]["found"], "torch was really asked"
    assert client.store.store_id in found["results"]["found"] and "free" in found["results"]["found"]
    assert "schema" in found["database"]["found"]
    assert seqproc("doctor").exit_code == 0


@pytest.mark.usefixtures("quick")
def test_a_job_that_nobody_does(seqproc: Run, submitted: str) -> None:
    queues = checks(seqproc)["queues"]
    assert queues["verdict"] == "warn"
    assert "seqproc worker --queue default" in queues["remedy"]


@pytest.mark.usefixtures("quick")
def test_a_paused_worker_says_why(seqproc: Run, client: Client) -> None:
    client.store.register_worker("w", this_process(), queues=["default"])
    client.store.worker_beat("w", paused="the disk is full")
    workers = checks(seqproc)["workers"]
    assert (workers["verdict"], workers["found"]) == ("warn", "paused: w: the disk is full")


@pytest.mark.usefixtures("quick")
def test_the_wrong_results_folder(seqproc: Run, submitted: str) -> None:
    elsewhere = Path("elsewhere").absolute()
    elsewhere.mkdir()
    result = seqproc("doctor", env={"SEQPROC_RESULTS_DIR": str(elsewhere), "SEQPROC_DATA_DIR": "/no/such/folder"})
    assert result.exit_code == 1
    assert f"fail  results: this database has its results elsewhere: {elsewhere}" in result.stdout
    assert "fail  datasets: SEQPROC_DATA_DIR is /no/such/folder" in result.stdout


# --- broker ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hung() -> Iterator[int]:
    """The port of a server that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("password", ["s3cret", "s3/cret", "s3#cret", "s3?cret", "s3@cret"])
def test_a_hung_broker_hangs_nothing_and_no_password_is_shown(
    seqproc: Run, hung: int, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.cli.doctor._BROKER_SECONDS", 0.2)
    for before in (":", "user:12", "user:12/"):
        result = seqproc("doctor", env={"SEQPROC_REDIS_URL": f"redis://{before}{password}@127.0.0.1:{hung}/0"})
        assert not any(part in result.output for part in ("s3", "cret", "12s", "12/"))
        if result.exit_code == 2:  # a password that makes it no URL is refused before anything is looked at
            assert "SEQPROC_REDIS_URL: give a URL like redis://" in result.stderr
        else:
            assert (result.exit_code, "fail  broker: " in result.stdout) == (1, True)
        if (before, password) == (":", "s3cret"):
            assert f"redis://:***@127.0.0.1:{hung}/0 does not answer as it should" in result.stdout


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "url", ["s3cret@127.0.0.1:1", "amqp://:s3cret@127.0.0.1:1", "redis:s3cret", "redis://:s3cret@"]
)
def test_what_is_no_url_of_a_redis(seqproc: Run, url: str) -> None:
    result = seqproc("doctor", env={"SEQPROC_REDIS_URL": url})
    assert result.exit_code == 2 and "SEQPROC_REDIS_URL: give a URL like" in result.stderr
    assert "s3cret" not in result.output


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("parameter", ["socket_timeout=soon", "nonsense=1"])
def test_a_parameter_that_redis_does_not_take(seqproc: Run, parameter: str) -> None:
    broker = checks(seqproc, SEQPROC_REDIS_URL=f"redis://:s3cret@127.0.0.1:1/0?{parameter}")["broker"]
    assert broker["verdict"] == "fail" and "s3cret" not in broker["found"]
    assert parameter.partition("=")[0] in broker["found"].partition("should: ")[2], "as Redis says it"
    assert "mend SEQPROC_REDIS_URL" in broker["remedy"]


@pytest.mark.usefixtures("quick")
def test_a_broker_that_answers(seqproc: Run) -> None:
    from threading import Thread

    from fakeredis import TcpFakeServer

    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        port = server.server_address[1]
        broker = checks(seqproc, SEQPROC_REDIS_URL=f"redis://127.0.0.1:{port}/1")["broker"]
    finally:
        server.shutdown()
        server.server_close()
    assert (broker["verdict"], broker["found"]) == ("ok", f"redis://127.0.0.1:{port}/1 answers")


@pytest.mark.usefixtures("quick")
def test_a_database_that_is_away_shows_no_password(seqproc: Run) -> None:
    url = "postgresql+psycopg://user:s3cret@127.0.0.1:1/db"
    for command in ("list", "doctor"):
        result = seqproc(command, env={"SEQPROC_DATABASE_URL": url})
        assert result.exit_code == 1
        assert "127.0.0.1" in result.output and "s3cret" not in result.output


# --- model cache ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_the_model_cache(seqproc: Run, hub: Path) -> None:
    assert f"{hub}, empty, writable" in checks(seqproc)["models"]["found"]
    blobs, snapshot = hub / "models--org--a" / "blobs", hub / "models--org--a" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "x").write_bytes(b"x" * 3_000_000)
    (snapshot / "model.safetensors").symlink_to(blobs / "x")
    (hub / "again").symlink_to(blobs)
    assert f"{hub}, 1 model, 3.0 MB, writable" in checks(seqproc)["models"]["found"], "a link counts as nothing"


@pytest.mark.usefixtures("quick")
def test_a_model_cache_that_takes_long_to_add_up(seqproc: Run, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.cli.doctor._CACHE_SECONDS", -1.0)
    hub.mkdir()
    (hub / "x").touch()
    assert "more than 0 bytes" in checks(seqproc)["models"]["found"]


@pytest.mark.usefixtures("quick")
def test_a_model_cache_that_cannot_be_written(seqproc: Run, hub: Path) -> None:
    hub.write_text("a file stands in its place: true for every user, also for root, who may write anywhere")
    models = checks(seqproc)["models"]
    assert models["verdict"] == "warn" and "HF_HOME" in models["remedy"]


# --- settings and packages ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"SEQPROC_RESULT_DIR": "x"}, "no setting SEQPROC_RESULT_DIR, did you mean SEQPROC_RESULTS_DIR?"),
        ({"SEQPROC_LEASE_SECONDS": "2"}, "SEQPROC_LEASE_SECONDS=2 leaves no room for three heartbeats"),
        ({"SEQPROC_POLL_SECONDS": "60"}, "SEQPROC_POLL_SECONDS"),
        ({"SEQPROC_WATCHDOG_SECONDS": "30"}, "working workers would end themselves"),
        ({"SEQPROC_WEBHOOK_HOSTS": "a.org"}, "nothing signs"),
        ({"SEQPROC_WEBHOOK_SECRET": "s3cret"}, "without SEQPROC_WEBHOOK_HOSTS"),
        ({"SEQPROC_MODEL_ROOTS": "/no/such"}, "/no/such, which is no folder"),
    ],
)
def test_settings_that_contradict_or_do_not_exist(seqproc: Run, env: dict[str, str], words: str) -> None:
    settings = checks(seqproc, **env)["settings"]
    assert settings["verdict"] == "warn"
    assert words in settings["found"] and "s3cret" not in settings["found"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["jobs", "worker", "webui.py"])
def test_a_folder_that_python_would_take_for_ours(seqproc: Run, name: str) -> None:
    Path(name).mkdir() if "." not in name else Path(name).touch()
    folder = checks(seqproc)["folder"]
    assert folder["verdict"] == "warn"
    assert f"{Path.cwd()} holds {name}" in folder["found"]


def test_another_checkout_than_the_installed_one(tmp_path: Path) -> None:
    shutil.copytree(_ROOT / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import jobs.cli.doctor as d\n"
        f"d._DEVICES = {_NO_TORCH!r}\n"
        "import sys; sys.argv = ['seqproc', 'doctor']\n"
        "from jobs.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("warn  version")]
    assert f"jobs was imported from {tmp_path / 'jobs'}" in line and str(_ROOT) in line


@pytest.mark.usefixtures("quick")
def test_the_checkout_itself_hides_nothing(seqproc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_ROOT)
    assert checks(seqproc)["folder"]["verdict"] == "ok"
