"""Whether anyone has written to an SQLite file: a look costs microseconds, so an idle worker can look all the time."""

from __future__ import annotations

import sqlite3


class Changes:
    """What was committed to the file since the last look, by any other connection of any process. For one thread."""

    def __init__(self, file: str) -> None:
        self._connection = sqlite3.connect(file, timeout=0, isolation_level=None)
        self._version = self._read()

    def seen(self) -> bool:
        """Has there been a commit since the last call? False also where the file cannot be read just now."""
        version = self._read()
        if version in (None, self._version):
            return False
        self._version = version
        return True

    def close(self) -> None:
        self._connection.close()

    def _read(self) -> int | None:
        try:
            version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
            return version
        except sqlite3.Error:
            return None
