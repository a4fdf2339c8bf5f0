"""No secret is anywhere that others look: output, errors, logs, files, arguments of processes. All is scanned."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.receiver import receiver

PASSWORD, REDIS, TOKEN, SIGNING = "hunter2-db", "hunter3-redis", "hunter4-token", "hunter5-signing"
SECRETS = (PASSWORD, REDIS, TOKEN, SIGNING)


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    """Settings that hold one secret of each kind; the database and Redis are away."""
    return {
        **os.environ,
        "SEQPROC_DATABASE_URL": f"postgresql://seqproc:{PASSWORD}@127.0.0.1:1/d?sslpassword={PASSWORD}",
        "SEQPROC_REDIS_URL": f"redis://:{REDIS}@127.0.0.1:1/0",
        "SEQPROC_TOKEN": TOKEN,
        "SEQPROC_WEBHOOK_SECRET": SIGNING,
        "SEQPROC_WEBHOOK_HOSTS": "127.0.0.1",
    }


def assert_silent(text: str | bytes, where: object) -> None:
    data = text.encode() if isinstance(text, str) else text
    for secret in SECRETS:
        assert secret.encode() not in data, f"{secret} in {where}"


def arguments_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def run(environment: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "jobs", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("args", ["list", "list --json", "db upgrade", "status x --json", "gc"])
def test_a_database_that_is_away(seqproc: Run, environment: dict[str, str], args: str) -> None:
    done = seqproc(*args.split(), env=environment)
    assert done.exit_code == 1
    assert "127.0.0.1:1/d" in done.stderr
    assert_silent(done.output, args)


def test_a_worker_without_a_database(environment: dict[str, str]) -> None:
    done = run(environment, "worker", "--idle-exit")
    assert done.returncode == 1
    assert "127.0.0.1:1/d" in done.stderr
    assert_silent(done.stdout + done.stderr, "worker")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://seqproc:{PASSWORD}@127.0.0.1:1",
        f"mysql://seqproc:{PASSWORD}@127.0.0.1/d",
        f"sqlite://seqproc:{PASSWORD}@127.0.0.1",
        f"postgresql://seqproc:{PASSWORD}@127.0.0.1/d?nonsense={PASSWORD}",
        f"seqproc:{PASSWORD}@127.0.0.1/d",
        f"postgresql://seqproc:{PASSWORD}@[::1/d",
        f"postgresql://seqproc:{PASSWORD}@127.0.0.1:port/d",
    ],
)
def test_a_database_url_that_is_wrong(seqproc: Run, environment: dict[str, str], url: str) -> None:
    done = seqproc("list", env={**environment, "SEQPROC_DATABASE_URL": url})
    assert done.exit_code == 1
    assert_silent(done.output, url)


def test_a_whole_run(environment: dict[str, str], home: Path) -> None:
    """A job with a webhook, from submit to its end, by a child worker; everything it leaves behind is scanned."""
    del environment["SEQPROC_DATABASE_URL"]
    with receiver() as server:
        submit = ["submit", "--model", "tiny-arithmetic", "--prompts", "1+1=", "-G", "1", "--max-new-tokens", "4"]
        submit += ["--webhook", server.url(), "--json", "--name", "all"]
        command = [sys.executable, "-P", "-m", "jobs", *submit]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        seen: set[bytes] = set()
        while process.poll() is None:
            with suppress(FileNotFoundError):  # one has just left
                seen |= {arguments_of(pid) for pid in (process.pid, *children_of(process.pid))}
            time.sleep(0.01)
        out, said = process.communicate()
        assert process.returncode == 0, said
        deadline = time.monotonic() + 60
        while not server.requests:
            assert time.monotonic() < deadline, "the child tells of the end before it leaves"
            time.sleep(0.01)
    assert any(b"--idle-exit" in arguments for arguments in seen), "the child's arguments were looked at"
    for text in (out, said, *seen):
        assert_silent(text, text)
    for args in (("status", "all", "--json"), ("status", "all"), ("logs", "all", "--json"), ("list", "--json")):
        done = run(environment, *args)
        assert done.returncode == 0
        assert_silent(done.stdout + done.stderr, args)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert {"spec.json", "manifest.json", "seqproc.db"} <= {path.name for path in files}
    assert any(path.parent.name == "logs" for path in files)
    for path in files:
        assert_silent(path.read_bytes(), path)
    _, headers, body = server.requests[0]
    assert_silent(body + repr(headers).encode(), "the event")


def test_a_webhook_with_credentials_is_refused_without_repeating_them(seqproc: Run) -> None:
    url = f"https://user:{PASSWORD}@127.0.0.1/x"
    done = seqproc("submit", "--model", "tiny-arithmetic", "--prompts", "a", "--webhook", url, "-d")
    assert done.exit_code == 2
    assert "--webhook: must hold no user and no password" in done.stderr
    assert_silent(done.output, "the refusal")
