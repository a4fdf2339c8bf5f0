"""The results root and the database belong together: `STORE_ID` in the root holds the id that the database knows.

A root that was not mounted, or is another one, would make every job look lost and every folder look orphaned: nobody
writes, claims or collects before this check has passed. The first empty folder that comes becomes the root, and the
database remembers which it was: no other ever does.
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
    """Raises ResultsError unless `root` is this database's results root; the first new or empty folder becomes it."""
    known = store.root_id()
    taken = "/" in known or bool(store.jobs(limit=1))
    found = _read(root)  # after the database: a root is marked before it is taken
    if found is None:
        if taken:
            raise ResultsError(
                f"this database has its results elsewhere: {root} holds no {STORE_ID_FILE}. Mount the shared results "
                f"folder there or name it in SEQPROC_RESULTS_DIR; if those results are gone for good, write {known} "
                f"into {root / STORE_ID_FILE}"
            )
        found = _mark(root, f"{known}/{secrets.token_hex(4)}")
    if found != known and found.startswith(f"{known}/"):  # marked, and not yet taken: whoever marked it was killed
        known = store.take_root(found)
    if found != known:
        other = found.partition("/")[0] != store.store_id
        whose = "belongs to another database" if other else "is not the one that this database took first"
        raise ResultsError(
            f"the results folder {root} {whose} (its {STORE_ID_FILE} says {found}, this database's is {known}): "
            "set SEQPROC_RESULTS_DIR or SEQPROC_DATABASE_URL so that they match"
        )


def _read(root: Path) -> str | None:
    with reading(root / STORE_ID_FILE):
        try:
            return (root / STORE_ID_FILE).read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None


def _mark(root: Path, root_id: str) -> str:
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
            temporary.write_text(root_id + "\n", encoding="utf-8")
            flush(temporary)
            with suppress(FileExistsError):
                os.link(temporary, root / STORE_ID_FILE)  # unlike a rename, never replaces
        finally:
            temporary.unlink(missing_ok=True)
        flush(root)
    return _read(root) or root_id
