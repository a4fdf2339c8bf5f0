"""What a worker says of hostile names, on its own terminal and in its log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jobs import Client
from tests.trust.test_terminal import HOSTILE, assert_harmless


def test_a_workers_own_terminal_and_log(tmp_path: Path) -> None:
    """The model's name ends up in the sentence that the worker logs."""
    folder = tmp_path / f"model {HOSTILE.replace('/', '')}"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with Client() as client:
        client.submit(model=str(folder), prompts=["x"], G=1)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "jobs", "worker", "--idle-exit"], capture_output=True, timeout=200
        )
        (log,) = (client.settings.results / "logs").iterdir()
    said, written = done.stderr.decode(), log.read_text()
    assert "bold red" in said and "bold red" in written
    assert_harmless(said, ours=False)
    assert_harmless(written, ours=False)
