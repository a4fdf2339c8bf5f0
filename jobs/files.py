"""Files that are there whole or not at all, also after a power cut, and sentences for when they cannot be.

A file is written under a temporary name in its own folder, flushed to the disk, renamed, and the folder flushed.
A temporary name is `.<name>.<random>.tmp`: whoever finds one left behind knows what it was going to be.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jobs.errors import ResultsError

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def final_name(name: str) -> str:
    """The name that a temporary file was going to get; any other name as it is."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; when the block ends it durably becomes `path`, when it fails it is removed.

    Raises ResultsError with a sentence for every OSError.
    """
    with writing(path), reserved(path) as temporary:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)


@contextmanager
def reserved(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is still there at the end of the block is removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a ResultsError that names the place and the remedy."""
    try:
        yield
    except OSError as error:
        raise ResultsError(_writing_failed(path, error)) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a missing or damaged file into a ResultsError. (Arrow's own errors are ValueError and OSError.)"""
    try:
        yield
    except FileNotFoundError:
        raise ResultsError(f"{path} is missing: its folder was moved, cleared or copied in part") from None
    except (OSError, ValueError, KeyError) as error:
        raise ResultsError(f"{path} cannot be read, it may be damaged: {_first_line(error)}") from error


def flush(path: Path) -> None:
    """Brings a closed file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Creates the folder and its missing parents, durably. Raises ResultsError."""
    with writing(path):
        missing = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            flush(folder.parent)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Writes plain data as indented JSON, whole or not at all. Raises ResultsError."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises ResultsError for a missing or damaged file."""
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def _writing_failed(path: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return f"the disk of {path.parent} is full: free some space there (`seqproc gc` removes what no job needs)"
    if error.errno in _FORBIDDEN:
        return (
            f"{path} is not writable ({os.strerror(error.errno or 0)}): give yourself the right to write there, "
            "or choose another folder (results: SEQPROC_RESULTS_DIR)"
        )
    remedy = "mend that, or choose another folder (results: SEQPROC_RESULTS_DIR)"
    return f"{path} cannot be written: {_first_line(error)}; {remedy}"


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # Arrow's own text repeats the path
    return (str(error) or type(error).__name__).splitlines()[0]
