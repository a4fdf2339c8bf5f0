"""The results root and the database belong together: `STORE_ID` in the root holds the id that the database knows.

A root that was not mounted, or is another one, would make every job look lost and every folder look orphaned: nobody
writes, claims or collects before this check has passed.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from jobs.errors import ResultsError
from jobs.files import flush, make_folder, reading, writing
from jobs.paths import STORE_ID_FILE
from jobs.store import Store


def check_root(store: Store, root: Path) -> None:
    """Raises ResultsError unless `root` is this database's results root; an empty one becomes it while no job is."""
    adopt_or_check(root, store.store_id, adopt=not store.jobs(limit=1))


def adopt_or_check(root: Path, store_id: str, *, adopt: bool = True) -> None:
    """Raises ResultsError unless `root` is the database's results root; a new or empty folder becomes it.

    Args:
        root: the results root.
        store_id: `Store.store_id`.
        adopt: False where the database already has jobs, so that an empty folder cannot be where they lie.
    """
    found = _read(root)
    if found is None and not adopt:
        raise ResultsError(
            f"the jobs of this database have their results elsewhere: {root} holds no {STORE_ID_FILE}. Mount the "
            f"shared results folder there or name it in SEQPROC_RESULTS_DIR; if those results are gone for good, write "
            f"{store_id} into {root / STORE_ID_FILE}"
        )
    if found is None:
        found = _adopt(root, store_id)
    if found != store_id:
        raise ResultsError(
            f"the results folder {root} belongs to another database (its {STORE_ID_FILE} says {found}, this database's "
            f"is {store_id}): set SEQPROC_RESULTS_DIR or SEQPROC_DATABASE_URL so that they match"
        )


def _read(root: Path) -> str | None:
    with reading(root / STORE_ID_FILE):
        try:
            return (root / STORE_ID_FILE).read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None


def _adopt(root: Path, store_id: str) -> str:
    """Writes the id unless another process was first; returns the id that stands there now."""
    make_folder(root)
    if any(not entry.name.startswith(f".{STORE_ID_FILE}.") for entry in root.iterdir()):
        found = _read(root)  # another process may have been first between the two looks
        if found is None:
            raise ResultsError(
                f"{root} is not empty and is no results folder: set SEQPROC_RESULTS_DIR to an empty or a new folder"
            )
        return found
    temporary = root / f".{STORE_ID_FILE}.{secrets.token_hex(4)}.tmp"
    with writing(root / STORE_ID_FILE):
        try:
            temporary.write_text(store_id + "\n", encoding="utf-8")
            flush(temporary)
            with suppress(FileExistsError):
                os.link(temporary, root / STORE_ID_FILE)  # unlike a rename, never replaces
        finally:
            temporary.unlink(missing_ok=True)
        flush(root)
    return _read(root) or store_id
