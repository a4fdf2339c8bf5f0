"""What the README says is run: its commands in a shell, its Python as it stands, its settings against the real ones."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

from jobs.settings import Settings
from jobs.states import JOB_EDGES
from jobs.webhooks import signature
from tests.docs.conftest import ROOT, blocks

README = (ROOT / "README.md").read_text()


def test_shell_blocks_run_as_written(home: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(blocks(README, "sh"))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert any((home / "out").glob("*.parquet"))


def test_python_blocks_run_as_written(home: Path) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert len(names["frame"]) == 16
    assert names["client"].get(names["job"].id).record.state == "succeeded"
    model = names["model"]
    assert any(parameter.grad is not None for parameter in model.parameters()), "loss.backward() reached the model"
    header = signature("key", int(time.time()), b"{}")
    assert names["genuine"]("key", header, b"{}")
    assert not names["genuine"]("key", header, b"[]")
    assert not names["genuine"]("key", signature("key", int(time.time()) - 600, b"{}"), b"{}")
    names["client"].close()


def test_settings_table_names_every_setting_and_no_other() -> None:
    named = re.findall(r"^\| `SEQPROC_(\w+)`", README, flags=re.MULTILINE)
    assert [name.lower() for name in named] == list(Settings.model_fields)


def test_state_diagram_is_the_table_of_edges() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+):", README, flags=re.MULTILINE))
    assert drawn == {(str(a), str(b)) for a, b in JOB_EDGES}
