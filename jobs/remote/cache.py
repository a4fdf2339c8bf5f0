"""Result files of a server, kept here while they are read: each under its digest, so that it is fetched once.

A file that nobody has read for a week is removed when another is fetched.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from jobs.errors import ResultsError
from jobs.files import make_folder, sha256_of
from jobs.paths import JobPaths
from jobs.records import Shard, Sidecar
from jobs.remote.server import Server
from jobs.results import ResultFile
from jobs.settings import Settings
from jobs.sidecars import added_of

_KEPT = 7 * 86_400.0  # seconds since it was last read
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Cache:
    """The folder `cache` in the home. No name in it comes from the server: only digests and numbers."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._folder = Settings.load().home.expanduser().resolve() / "cache"
        self._swept = False

    def paths(self, job_id: str) -> JobPaths:
        return JobPaths(self._folder, job_id)

    def place(self, shard: Shard, columns: Iterable[str] = (), beside: Iterable[Sidecar] = ()) -> ResultFile:
        """Where the files of a done shard, and its sidecars, are going to lie.

        Raises ResultsError for what is no digest.
        """
        errors = JobPaths.digest_in(shard.errors_file) if shard.errors_file else None
        if not _DIGEST.fullmatch(shard.sha256 or "") or (shard.errors_file and errors is None):
            raise ResultsError(
                f"shard {shard.index} of job {shard.job_id} was written by a version of which no digests are known: "
                "read it where it lies"
            )
        file = self._folder / f"{shard.sha256}.parquet"
        added = added_of(columns, beside, self._sidecar)
        return ResultFile.of(shard, file, self._folder / f"{errors}.jsonl" if errors else None, added)

    def _sidecar(self, sidecar: Sidecar) -> Path:
        if not _DIGEST.fullmatch(sidecar.sha256):
            raise ResultsError(f"the server says of {sidecar.column} what is no digest: it is of another version")
        return self._folder / f"{sidecar.sha256}.parquet"

    def bring(self, job_id: str, file: ResultFile) -> None:
        """Fetch what of the file is not here, or not whole any more. Raises ResultsError, Unreachable."""
        self._fetch(f"/jobs/{job_id}/files/{file.shard}", file.path)
        if file.errors is not None:
            self._fetch(f"/jobs/{job_id}/files/{file.shard}/errors", file.errors)
        for added in file.added:
            if added.path is not None:
                name = added.column.removeprefix(f"{added.inside}_")
                self._fetch(f"/jobs/{job_id}/sidecars/{added.inside}/{name}/{file.shard}", added.path)

    def _fetch(self, path: str, target: Path) -> None:
        if target.is_file() and sha256_of(target) == target.stem:
            with suppress(OSError):
                target.touch()
            return
        make_folder(self._folder)
        self._sweep()
        self._server.download(path, target, target.stem)

    def _sweep(self) -> None:
        if self._swept:
            return
        self._swept = True
        for file in self._folder.iterdir():
            with suppress(OSError):  # somebody else removes it too
                if file.stat().st_mtime < time.time() - _KEPT:
                    file.unlink()
