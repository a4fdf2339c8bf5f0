"""A disk of its own, small enough to be full: a tmpfs, which only root may mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_CHUNK = 4096


class SmallDisk:
    """`fill` leaves not a page, or so many bytes; `make_room` gives back what it took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, but: int = 0) -> None:
        with self._filler.open("ab", buffering=0) as file:
            with suppress(OSError):
                while True:
                    file.write(bytes(_CHUNK))
            file.truncate(file.tell() - but)

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, megabytes: int = 4) -> Iterator[SmallDisk]:
    """Mounts a tmpfs at `path`; skips where that is not allowed, fails in CI where root may not for another reason."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk to fill it")
    path.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", path], capture_output=True, text=True
    )
    if mounted.returncode:
        why = f"no small disk to fill: {mounted.stderr.strip()}"
        forbidden = "permission denied" in why.lower() or "not permitted" in why.lower()
        pytest.fail(why) if os.environ.get("CI") and not forbidden else pytest.skip(why)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)  # lazily: whoever still holds a file there is about to go
