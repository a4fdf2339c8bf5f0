"""The very commands, environments and health checks of docker-compose.yml, started as plain processes.

Only what a container would supply is replaced: host names, ports and folders, the GPUs where there are none, and
`redis-cli`, which the wheel of the server lacks. A process gets the environment that the file gives it, and no other.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import which

import platformdirs
import pytest
import redis
from celery import Celery
from sqlalchemy import create_engine, make_url, text

from tests import postgres
from tests.breakable import free_port
from tests.deploy.compose import SECRETS, image_environment, load, seconds
from tests.trust.conftest import Touch

OTHER_SECRETS = {"SEQPROC_WEBHOOK_SECRET": "webhooksecret4", "HF_TOKEN": "hf_secret5"}

REDIS_CLI = """\
#!{python} -I
import os, sys, redis
answer = redis.Redis(port={port}, password=os.environ.get("REDISCLI_AUTH")).execute_command(*sys.argv[1:])
print("PONG" if answer is True else answer)
"""


class Stack:
    """The services of the file on this machine."""

    def __init__(self, folder: Path, redis_binary: Path, postgres_port: int) -> None:
        self.folder = folder
        self.file = load(SECRETS | OTHER_SECRETS)
        self.redis_port, web = free_port(), free_port()
        self.places = {
            "@postgres:5432/": f"@127.0.0.1:{postgres_port}/",
            "@redis:6379/": f"@127.0.0.1:{self.redis_port}/",
            "8642": str(web),
            "/usr/local/etc/redis": str(folder / "etc"),
            "/home/seqproc": str(folder / "home"),
            "/results": str(folder / "results"),
            "/models": str(folder / "models"),
            "dir /data": f"port {self.redis_port}\nbind 127.0.0.1\ndir {folder / 'data'}",
        }
        for name in ("bin", "etc", "home/.cache", "models", "data", "out"):
            (folder / name).mkdir(parents=True)
        (folder / "home/.cache/seqproc").symlink_to(platformdirs.user_cache_path("seqproc", ensure_exists=True))
        self._supply_programs(redis_binary)
        binaries = postgres.find_binaries()
        path = [folder / "bin", Path(sys.executable).parent, binaries, "/usr/local/bin", "/usr/bin", "/bin"]
        self.environment = {"PATH": os.pathsep.join(map(str, path)), "PGPORT": str(postgres_port)}
        (config,) = self.file["configs"].values()
        (given,) = self.file["services"]["redis"]["configs"]
        Path(self.placed(given["target"])).write_text(self.placed(config["content"]))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _supply_programs(self, redis_binary: Path) -> None:
        (self.folder / "bin/redis-server").symlink_to(redis_binary)
        cli, real = self.folder / "bin/redis-cli", which("redis-cli") or which("valkey-cli")
        if real:
            cli.write_text(f'#!/bin/sh\nexec {shlex.quote(real)} -p {self.redis_port} "$@"\n')
        else:
            cli.write_text(REDIS_CLI.format(python=sys.executable, port=self.redis_port))
        cli.chmod(0o755)

    def placed(self, value: str) -> str:
        """The value, with what a container would supply replaced by what this machine has."""
        for there, here in self.places.items():
            value = value.replace(there, here)
        return value

    def environment_of(self, service: str) -> dict[str, str]:
        image = image_environment() if "build" in self.file["services"][service] else {}
        given = image | self.file["services"][service].get("environment", {})
        return self.environment | {name: self.placed(value) for name, value in given.items()}

    def command_of(self, service: str) -> list[str]:
        return [self.placed(word) for word in self.file["services"][service]["command"]]

    def start(self, service: str, command: list[str] | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / f"out/{service}").open("ab") as out:
            self.processes[service] = subprocess.Popen(
                command or self.command_of(service),
                env=self.environment_of(service),
                cwd=self.folder / "home",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        return self.processes[service]

    def run(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker compose exec SERVICE COMMAND` does."""
        done = subprocess.run(
            command,
            env=self.environment_of(service),
            cwd=self.folder / "home",
            capture_output=True,
            text=True,
            timeout=120,
        )
        with (self.folder / "out/commands").open("a") as out:
            out.write(done.stdout + done.stderr)
        return done

    def healthy(self, service: str) -> bool:
        """What the service's health check says, run as it is written."""
        kind, *words = self.file["services"][service]["healthcheck"]["test"]
        command = ["/bin/sh", "-c", words[0]] if kind == "CMD-SHELL" else words
        return self.run(service, *map(self.placed, command)).returncode == 0

    def until_healthy(self, service: str) -> None:
        deadline = time.monotonic() + 120
        while not self.healthy(service):
            process = self.processes.get(service)
            if time.monotonic() > deadline or (process is not None and process.poll() is not None):
                said = "\n".join(path.read_text() for path in sorted((self.folder / "out").iterdir()))
                pytest.fail(f"{service} did not become healthy:\n{said}")
            time.sleep(0.2)

    def stop(self, service: str) -> int:
        """SIGTERM, as Compose does; fails if the process is not gone within its grace period."""
        process = self.processes.pop(service)
        process.terminate()
        return process.wait(seconds(self.file["services"][service].get("stop_grace_period", "10s")))

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, postgres_server: str, redis_binary: Path) -> Iterator[Stack]:
    """Everything up and healthy, in the file's order, as `docker compose up` has it."""
    server = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE seqproc"))
    made = Stack(tmp_path_factory.mktemp("stack"), redis_binary, make_url(postgres_server).port or 5432)
    try:
        made.start("redis")
        made.until_healthy("postgres")
        made.until_healthy("redis")
        yield made
    finally:
        made.close()
        with server.connect() as connection:
            connection.execute(text("DROP DATABASE seqproc WITH (FORCE)"))
        server.dispose()


@pytest.fixture(scope="module")
def job(stack: Stack) -> str:
    """The id of a job that was submitted through the running services and succeeded."""
    early = stack.start("web")
    while b"not ready" not in (stack.folder / "out/web").read_bytes():  # before the migration it lives and is not ready
        assert early.poll() is None and not stack.healthy("web")
        time.sleep(0.2)
    assert stack.start("migrate").wait(120) == 0
    stack.until_healthy("web")
    assert not stack.healthy("worker")
    stack.start("worker", worker_command(stack))
    stack.until_healthy("worker")
    spec = ["--model", "tiny-arithmetic", "--prompts", "What is 2 + 3?", "-G", "2", "--max-new-tokens", "8"]
    submitted = stack.run("worker", "seqproc", "submit", *spec, "--seed", "1", "-dq")
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    waited = stack.run("worker", "seqproc", "wait", job_id, "--timeout", "100")
    assert waited.returncode == 0, waited.stderr
    return job_id


def worker_command(stack: Stack) -> list[str]:
    """As written where there are GPUs; where there are none, one worker on the CPU."""
    import torch

    command = stack.command_of("worker")
    if torch.cuda.is_available():
        return command
    refused = stack.run("worker", *command)
    assert refused.returncode == 2 and "no GPU" in refused.stderr
    assert command[-2:] == ["--gpus", "all"]
    return command[:-2]


def test_a_job_runs_through_them(stack: Stack, job: str) -> None:
    folder = stack.folder / "results/jobs" / job
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "succeeded"
    (log,) = (stack.folder / "results/logs").iterdir()
    assert [tried["worker_id"] for tried in manifest["attempts"]] == [log.stem], (
        "by the service, and no worker beside it"
    )
    assert "listening for rings" in (stack.folder / "out/worker").read_text()
    assert stack.run("worker", "seqproc", "show", job).returncode == 0


def test_the_migration_may_run_again(stack: Stack, job: str) -> None:
    again = stack.run("migrate", *stack.command_of("migrate"))
    assert again.returncode == 0
    assert "already has schema" in again.stdout


def test_redis_runs_as_configured(stack: Stack) -> None:
    with redis.Redis(port=stack.redis_port, password=SECRETS["REDIS_PASSWORD"]) as client:
        wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction", "maxmemory": str(256 * 1024**2), "save": ""}
        for name, value in wanted.items():
            assert client.config_get(name) == {name: value}
    with redis.Redis(port=stack.redis_port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_the_web_server_refuses_to_start_without_its_token(stack: Stack, job: str) -> None:
    environment = stack.environment_of("web")
    del environment["SEQPROC_TOKEN"]
    done = subprocess.run(
        [*stack.command_of("web")[:-1], "0"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "SEQPROC_TOKEN is not set" in done.stderr


def test_nothing_on_disk_or_in_redis_is_a_pickle(stack: Stack, job: str) -> None:
    results = [path for path in (stack.folder / "results").rglob("*") if path.is_file()]
    assert {path.suffix for path in results} == {"", ".json", ".jsonl", ".parquet"}
    for path in results:
        content = path.read_bytes()
        if path.suffix == ".parquet":
            assert content[:4] == content[-4:] == b"PAR1"
        elif path.suffix:
            for document in [content] if path.suffix == ".json" else content.splitlines():
                json.loads(document)
        else:
            assert path.name == "STORE_ID"
    written = b"".join(path.read_bytes() for path in (stack.folder / "data").rglob("*") if path.is_file())
    assert b"application/json" in written, "rings went through it"
    assert b"python-serialize" not in written and b"pickle" not in written


def test_a_pickled_message_is_refused_and_the_worker_lives(stack: Stack, job: str) -> None:
    """Whoever has Redis's password can send one; unpickling it would create a file."""
    trap = stack.folder / "trapped"
    with redis.Redis(port=stack.redis_port, password=SECRETS["REDIS_PASSWORD"], decode_responses=True) as client:
        (binding,) = client.keys("*_kombu.binding.default")
    prefix = binding.removesuffix("_kombu.binding.default")
    with Celery(broker=stack.environment_of("worker")["SEQPROC_REDIS_URL"], set_as_current=False) as sender:
        sender.conf.broker_transport_options = {"global_keyprefix": prefix, "priority_steps": [0]}
        sender.send_task("seqproc.ring", (Touch(trap),), queue="default", serializer="pickle", ignore_result=True)
    deadline = time.monotonic() + 60
    while b"untrusted content of type pickle" not in (stack.folder / "out/worker").read_bytes():
        assert time.monotonic() < deadline and not trap.exists()
        time.sleep(0.1)
    assert not trap.exists()
    assert stack.processes["worker"].poll() is None and stack.healthy("worker")


def test_no_secret_is_seen(stack: Stack, job: str) -> None:
    """Not in results, logs and output, and not on a command line of a living process."""
    secrets = [secret.encode() for secret in (SECRETS | OTHER_SECRETS).values()]
    given = [value for name in stack.file["services"] for value in stack.environment_of(name).values()]
    assert all(any(secret.decode() in value for value in given) for secret in secrets), "or there would be none to see"
    places = [stack.folder / name for name in ("results", "home", "out", "data")]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        found = [secret for secret in secrets if secret in path.read_bytes()]
        assert not found, f"{path} holds {found}"
    children = {str(process.pid) for process in stack.processes.values() if process.poll() is None}
    assert len(children) == 3, "redis, worker and web"
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert not any(secret in line.read_bytes() for secret in secrets), line.read_bytes()
            children.discard(line.parent.name)
    assert not children, "they were looked at"


def test_stopping(stack: Stack, job: str) -> None:
    """Last: each leaves within its grace period, in order, and its health check sees it."""
    assert stack.stop("worker") == 0
    assert not stack.healthy("worker")
    assert stack.stop("web") in (0, -signal.SIGTERM)
    assert not stack.healthy("web")
    assert stack.stop("redis") == 0
    assert not stack.healthy("redis")
