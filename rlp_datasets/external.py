"""Datasets that nobody registered: of the hub (`hf:NAME[:CONFIG]`), and folders of `save_to_disk` (`disk:FOLDER`).

They are data and nothing else: the `datasets` library reads Arrow, Parquet, JSON and the like and runs no dataset's
own script. Rows are mapped from disk, so that memory does not grow with them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from .errors import DatasetFileError, DatasetUnavailableError, UnknownDatasetError
from .registry import check_split

HUB, DISK = "hf:", "disk:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


class Rows(Protocol):
    """A split of such a dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def is_external(name: str) -> bool:
    """Whether the name says where a dataset lies, and is not one that is registered."""
    return name.startswith((HUB, DISK))


def open_dataset(name: str, split: str = "train") -> Rows:
    """The rows of a split, as dicts by column. A folder that holds one split only is that split, whatever it was.

    Raises UnknownDatasetError for a name that cannot be one, UnknownSplitError, DatasetFileError for a folder that is
    missing or damaged, DatasetUnavailableError if the hub does not answer or has no such dataset.
    """
    return _of_disk(name, split) if name.startswith(DISK) else _of_hub(name, split)


def _of_disk(name: str, split: str) -> Rows:
    import datasets

    folder = Path(name.removeprefix(DISK)).expanduser()
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # missing, none of its kind, cut short: every layer raises its own
        raise DatasetFileError(
            f"{folder} holds no dataset that can be read: {_reason(error)}. Name a folder that save_to_disk wrote."
        ) from None
    if isinstance(found, datasets.DatasetDict):
        check_split(name, split, found)
        found = found[split]
    rows: Rows = found
    return rows


def _of_hub(name: str, split: str) -> Rows:
    import datasets

    dataset, _, config = name.removeprefix(HUB).partition(":")
    if not _NAME.fullmatch(dataset) or ".." in dataset or "/" in config:
        raise UnknownDatasetError(f"{name!r} names no dataset of the hub. Write hf:OWNER/NAME or hf:OWNER/NAME:CONFIG.")
    if Path(dataset).exists():  # the library would take it for the dataset, without a word
        raise UnknownDatasetError(
            f"{name!r} would be read from the folder {dataset} here, not from the hub. "
            f"Start in another folder, or name it as {DISK}{dataset} or by its files."
        )
    try:
        found: Rows = datasets.load_dataset(dataset, config or None, split=split)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        if "nknown split" in str(error):
            splits = re.findall(r"'([^']+)'", str(error).partition("Should be one of")[2])
            check_split(name, split, splits)
        raise DatasetUnavailableError(
            f"{name} cannot be loaded from the hub: {_reason(error)}. Check its name, its configuration and the "
            f"network; without network, name a folder of save_to_disk as {DISK}FOLDER."
        ) from error
    return found


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
