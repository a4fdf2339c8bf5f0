"""Folders that look like models and try something: to run code, to pass off a pickle as weights, to lead elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sequence_processing

PACKAGED = Path(sequence_processing.__file__).parent / "models" / "tiny-arithmetic"


class Touch:
    """What unpickling this does: it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """The file that appears if anything of ours is tricked into running foreign code."""
    return tmp_path / "trapped"


@pytest.fixture
def copy_model(tmp_path: Path) -> Callable[..., Path]:
    """Copies the packaged model to a folder under the test's own; `config` changes its config.json."""

    def copy(name: str, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(PACKAGED, folder)
        change_json(folder / "config.json", **config)
        return folder

    return copy


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
