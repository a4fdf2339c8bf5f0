"""What docker-compose.yml, Dockerfile and .dockerignore promise, read off them, and held against strict validators."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns, which
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from jobs.settings import Settings
from jobs.store.database import BUSY_SECONDS
from tests.deploy.compose import ROOT, SECRETS, Refused, image_environment, instructions, load, seconds

TEXT = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = instructions((ROOT / "Dockerfile").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {"migrate", "worker", "web"}
SERVERS = {"postgres", "redis", "worker", "web"}


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = load(SECRETS)["services"]
    assert set(found) == OURS | SERVERS
    return found


def validate(text: str) -> None:
    """Raises ValueError unless the file is what the Compose specification allows, keys and references included."""
    data = load(SECRETS, text)
    PyCompose.from_yaml(yaml.safe_dump(data)).validate()
    for name, service in data["services"].items():  # references that the validator leaves alone
        named = {mount["source"] for mount in service.get("volumes", ()) if mount["type"] == "volume"}
        if strange := (named - set(data["volumes"])) | (set(service.get("depends_on", ())) - set(data["services"])):
            raise ValueError(f"{name} names {strange}")


class TestSchema:
    def test_the_file_is_valid(self) -> None:
        validate(TEXT)

    @pytest.mark.parametrize(
        "typo",
        [
            ("stop_grace_period", "stop_grace_perid"),
            ("healthcheck:", "healthchek:"),
            ("interval:", "intervall:"),
            ("service_healthy", "service_helthy"),
            ("unless-stopped", "unless-stoped"),
            ("reservations:", "reservation:"),
            ("capabilities:", "capability:"),
            ("security_opt:", "security_opts:"),
            ("\nconfigs:", "\nconfig:"),
            ("content: |", "contents: |"),
            ("start_period: 1m", "start_period: soon"),
            ('["CMD", "pg_isready"', '["CMDS", "pg_isready"'),
            ("  results:\n", "  result:\n"),
            ("  migrate: {condition", "  migration: {condition"),
        ],
        ids=lambda typo: typo[1].strip(),
    )
    def test_a_misspelt_word_is_found(self, typo: tuple[str, str]) -> None:
        assert typo[0] in TEXT
        with pytest.raises(ValueError):
            validate(TEXT.replace(*typo))


class TestSecrets:
    @pytest.mark.parametrize("missing", SECRETS)
    @pytest.mark.parametrize("value", [None, ""])
    def test_refuses_to_start_without(self, missing: str, value: str | None) -> None:
        given = {name: text for name, text in SECRETS.items() if name != missing}
        with pytest.raises(Refused, match=rf"^set {missing} in \.env, see \.env\.example"):
            load(given if value is None else given | {missing: value})

    def test_the_example_names_them_and_gives_none(self) -> None:
        lines = (ROOT / ".env.example").read_text().splitlines()
        given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        assert given == dict.fromkeys(SECRETS, "")
        ignored = subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT)
        assert ignored.returncode == 0
        tracked = subprocess.run(["git", "check-ignore", "-q", ".env.example"], cwd=ROOT)
        assert tracked.returncode == 1

    def test_the_optional_ones_of_the_example_are_those_of_the_file(self) -> None:
        named = {
            line[1:].partition("=")[0]
            for line in (ROOT / ".env.example").read_text().splitlines()
            if line[:1] == "#" and "=" in line
        }
        found = {name for name in named if f"${{{name}:-" in TEXT}
        assert found == named

    def test_stand_on_no_command_line(self, services: dict[str, Any]) -> None:
        for service in services.values():
            for words in (service.get("command", []), service.get("healthcheck", {}).get("test", [])):
                assert not any(secret in word for secret in SECRETS.values() for word in words)

    def test_the_token_is_the_web_servers_alone(self, services: dict[str, Any]) -> None:
        having = {name for name, service in services.items() if SECRETS["SEQPROC_TOKEN"] in str(service)}
        assert having == {"web"}

    def test_peoples_tokens_and_the_servers_names_reach_the_web_server_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = {"SEQPROC_TOKENS": "alice:alicesecret6,bob:bobsecret7", "SEQPROC_WEB_HOSTS": "seqproc.example, box"}
        services = load(SECRETS | given)["services"]
        for value in given.values():
            assert {name for name, service in services.items() if value in str(service)} == {"web"}
        for name, value in services["web"]["environment"].items():
            monkeypatch.setenv(name, value)
        settings = Settings.load()
        assert {name: secret.get_secret_value() for name, secret in settings.tokens.items()} == {
            "alice": "alicesecret6",
            "bob": "bobsecret7",
        }
        assert settings.web_hosts == ("seqproc.example", "box")

    def test_without_them_there_is_the_operators_token_alone(
        self, services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in services["web"]["environment"].items():
            monkeypatch.setenv(name, value)
        settings = Settings.load()
        assert (settings.tokens, settings.web_hosts) == ({}, ())
        assert settings.token is not None

    def test_both_ends_have_the_same(self, services: dict[str, Any]) -> None:
        config = load(SECRETS)["configs"]["redis.conf"]["content"]
        assert f"requirepass {SECRETS['REDIS_PASSWORD']}" in config.splitlines()
        assert services["redis"]["environment"]["REDISCLI_AUTH"] == SECRETS["REDIS_PASSWORD"]
        assert services["postgres"]["environment"]["POSTGRES_PASSWORD"] == SECRETS["POSTGRES_PASSWORD"]
        for name in OURS:
            environment = services[name]["environment"]
            assert f":{SECRETS['REDIS_PASSWORD']}@redis:6379/" in environment["SEQPROC_REDIS_URL"]
            assert f"://seqproc:{SECRETS['POSTGRES_PASSWORD']}@postgres:" in environment["SEQPROC_DATABASE_URL"]


class TestServices:
    def test_servers_publish_nothing_and_the_web_only_on_loopback(self, services: dict[str, Any]) -> None:
        assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
            "web": ["127.0.0.1:8642:8642"]
        }
        assert all("network_mode" not in service for service in services.values())

    def test_health_checks_everywhere(self, services: dict[str, Any]) -> None:
        assert {name for name, service in services.items() if "healthcheck" in service} == SERVERS
        assert "/readyz" in services["web"]["healthcheck"]["test"][-1]
        for name in SERVERS:
            assert services[name]["healthcheck"].keys() >= {"test", "interval", "timeout", "retries", "start_period"}

    def test_order_of_starting(self, services: dict[str, Any]) -> None:
        healthy = {"condition": "service_healthy"}
        assert services["migrate"]["depends_on"] == {"postgres": healthy}
        migrated = {"condition": "service_completed_successfully"}
        for name in ("worker", "web"):
            assert services[name]["depends_on"] == {"migrate": migrated, "postgres": healthy, "redis": healthy}

    def test_restart(self, services: dict[str, Any]) -> None:
        assert {name: service["restart"] for name, service in services.items()} == dict.fromkeys(
            SERVERS, "unless-stopped"
        ) | {"migrate": "no"}

    def test_the_worker_has_every_gpu_and_time_to_hand_its_shard_back(self, services: dict[str, Any]) -> None:
        (devices,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
        assert devices == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        assert services["worker"]["command"] == ["seqproc", "worker", "--gpus", "all"]
        assert seconds(services["worker"]["stop_grace_period"]) >= BUSY_SECONDS + 15

    def test_results_are_one_volume(self, services: dict[str, Any]) -> None:
        for target, source in (("/results", "results"), ("/home/seqproc/.cache", "cache"), ("/models", "./models")):
            for name in ("worker", "web"):
                (mount,) = [mount for mount in services[name]["volumes"] if mount["target"] == target]
                assert (mount["source"], mount.get("read_only", False)) == (source, target == "/models")
        assert image_environment()["SEQPROC_RESULTS_DIR"] == "/results"

    def test_redis_loses_nothing(self, services: dict[str, Any]) -> None:
        config = dict(line.split(" ", 1) for line in load(SECRETS)["configs"]["redis.conf"]["content"].splitlines())
        assert (config["appendonly"], config["maxmemory-policy"]) == ("yes", "noeviction")
        (mount,) = services["redis"]["volumes"]
        assert mount["target"] == config["dir"]
        (given,) = services["redis"]["configs"]
        assert services["redis"]["command"] == ["redis-server", given["target"]]

    def test_images_are_pinned(self, services: dict[str, Any]) -> None:
        for name, service in services.items():
            version = service["image"].rpartition(":")[2]
            assert version[0].isdigit() and version.count(".") >= (1 if name == "postgres" else 2)
            assert name in OURS or "build" not in service
        assert {services[name]["image"] for name in OURS} == {f"sequence-processor:{PROJECT['project']['version']}"}

    def test_nobody_is_root(self, services: dict[str, Any]) -> None:
        assert (services["postgres"]["user"], services["redis"]["user"]) == ("postgres", "redis")
        for name in OURS:
            assert "user" not in services[name], "our image's own, see TestDockerfile"
            assert services[name]["cap_drop"] == ["ALL"]
            assert services[name]["security_opt"] == ["no-new-privileges:true"]
        assert all("privileged" not in service for service in services.values())

    def test_every_setting_is_one(self, services: dict[str, Any]) -> None:
        named = {key for name in OURS for key in services[name]["environment"]} | image_environment().keys()
        known = {f"SEQPROC_{name.upper()}" for name in Settings.model_fields}
        assert {name for name in named if name.startswith("SEQPROC_")} <= known


class TestDockerfile:
    def test_base_is_pinned_by_version(self) -> None:
        (base,) = [rest for name, rest in DOCKERFILE if name == "FROM"]
        image, _, tag = base.partition(":")
        assert (image, tag) == ("python", "3.11.14-slim-bookworm")

    def test_ends_as_a_user_who_is_not_root_with_folders_to_write(self) -> None:
        users = [rest for name, rest in DOCKERFILE if name == "USER"]
        assert users and users[-1].partition(":")[0].isdigit() and int(users[-1].partition(":")[0]) > 0
        after = [name for name, _ in DOCKERFILE][[name for name, _ in DOCKERFILE].index("USER") :]
        assert "RUN" not in after and "COPY" not in after
        runs = " ".join(rest for name, rest in DOCKERFILE if name == "RUN")
        assert f"--uid {users[-1].partition(':')[0]} seqproc" in runs
        assert "--owner=seqproc --group=seqproc /results /home/seqproc/.cache" in runs
        environment = image_environment()
        assert environment["HOME"] == environment["SEQPROC_HOME"] == "/home/seqproc"

    def test_installs_what_is_pinned_with_the_servers_clients_and_a_compiler(self) -> None:
        runs = [rest for name, rest in DOCKERFILE if name == "RUN"]
        assert any(" g++ " in f" {run} " for run in runs)
        (dependencies,) = [run for run in runs if "constraints.txt" in run]
        assert "-c constraints.txt -r pyproject.toml --extra postgres --extra redis" in dependencies
        assert {"postgres", "redis"} <= PROJECT["project"]["optional-dependencies"].keys()
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        assert any(pin.startswith("torch==") and "+" not in pin for pin in pins), "the index's own build: CUDA"

    def test_copies_what_the_wheel_needs_and_no_more(self, tmp_path: Path) -> None:
        """The wheel built from exactly what reaches the builder has every file of the packages."""
        assert [rest for name, rest in DOCKERFILE if name in ("COPY", "ADD")] == [
            "pyproject.toml constraints.txt ./",
            ". .",
        ]
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        rules = [line for line in lines if line and not line.startswith("#")]
        assert (rules[0], rules[-1]) == ("*", "**/__pycache__")
        packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        needed = {"LICENSE", "README.md", "constraints.txt", "pyproject.toml", *packages}
        assert {rule.removeprefix("!") for rule in rules[1:-1]} == needed
        hidden = ignore_patterns("__pycache__")
        for name in needed:
            path = ROOT / name
            copytree(path, tmp_path / name, ignore=hidden) if path.is_dir() else copy(path, tmp_path)
        uv = which("uv", path=Path(sys.executable).parent) or which("uv")
        assert uv is not None, "make installs it"
        subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path / "dist", tmp_path], check=True)
        (wheel,) = (tmp_path / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            built = {name for name in archive.namelist() if ".dist-info/" not in name}
        files = [path for package in packages for path in (tmp_path / package).rglob("*") if path.is_file()]
        assert built == {str(path.relative_to(tmp_path)) for path in files}
