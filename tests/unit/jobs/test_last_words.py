"""What a dead worker's log says last of an attempt, as the reaper puts it into the shard's error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.logs import last_words
from jobs.paths import worker_log

CRASH = """Fatal Python error: Segmentation fault

Thread 0x00007f1 (most recent call first):
  File "heartbeat.py", line 1 in _run

Current thread 0x00007f2 (most recent call first):
  File "kernel.py", line 7 in launch
  File "engine.py", line 9 in run
"""

HANG = """Timeout (0:20:00)!
Thread 0x00007f1 (most recent call first):
  File "heartbeat.py", line 1 in _run

Thread 0x00007f2 (most recent call first):
  File "kernel.py", line 7 in launch
  File "engine.py", line 9 in run
"""


def line(message: str, *, shard: int = 3, attempt: int = 2) -> str:
    return json.dumps({"worker": "w1", "job": "j", "shard": shard, "attempt": attempt, "message": message}) + "\n"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (line("Generating 512 rows at once"), "Generating 512 rows at once"),
        (line("first") + line("last") + line("other", shard=4) + line("other", attempt=1), "last"),
        (line("first") + '{"job": "j", "shard": 3, "att', "first"),
        (line("first") + CRASH, 'Fatal Python error: Segmentation fault at File "kernel.py", line 7 in launch'),
        (line("first") + HANG, 'Timeout (0:20:00)! at File "kernel.py", line 7 in launch'),
        (line("first") + "Fatal Python error: Ab", "Fatal Python error: Ab"),
        (line("x" * 10_000), "x" * 500),
        ('["no line"]\n', ""),
        ("", ""),
    ],
)
def test_last_words(tmp_path: Path, log: str, words: str) -> None:
    path = worker_log(tmp_path, "w1")
    path.parent.mkdir()
    path.write_text("x" * 100_000 + "\n" + log)
    assert last_words(tmp_path, "w1", "j", 3, 2) == words


def test_a_log_that_lies_elsewhere(tmp_path: Path) -> None:
    assert last_words(tmp_path, "w1", "j", 3, 2) == ""
