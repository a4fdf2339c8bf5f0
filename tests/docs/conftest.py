"""Texts whose examples are run: the README, and SEED.md, the interface that users of the core have today."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are typed: a folder and a home of their own, with ours first on the path."""
    monkeypatch.setenv("SEQPROC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gsm8k_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in for GSM8K in its own format, as SEQPROC_DATA_DIR."""
    folder = tmp_path / "data"
    (folder / "gsm8k").mkdir(parents=True)
    for split, start in (("train", 0), ("test", 500)):
        lines = [
            json.dumps({"question": f"Tom has {n} apples and buys 3 more. How many?", "answer": f"{n}+3\n#### {n + 3}"})
            for n in range(start, start + 120)
        ]
        (folder / "gsm8k" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("SEQPROC_DATA_DIR", str(folder))
    return folder
