"""A reward's processes against functions that hang, die or eat memory: what they were at is None, no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.errors import UsageError
from jobs.parquet import write_rows
from jobs.rewards import reward
from jobs.rewards.judge import CannotJudge, Judges

ROWS = 100


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {"prompt_index": i // 2, "sample_index": i % 2, "response": "é" * i, "answer": str(i), "response_ids": [i, 7]}
        for i in range(ROWS)
    ]
    write_rows(tmp_path / "shard.parquet", rows)
    return tmp_path / "shard.parquet"


def place(row: dict[str, Any]) -> int:
    return 2 * int(row["prompt_index"]) + int(row["sample_index"])


@pytest.mark.parametrize("processes", [1, 3])
def test_every_row_once_and_in_order(file: Path, processes: int) -> None:
    def where(row: dict[str, Any]) -> float:
        assert set(row) >= {"prompt", "response", "answer", "finish_reason", "response_ids", "logprobs"}
        assert row["response_ids"] == [len(row["response"]), 7]
        return float(row["answer"])

    with Judges(where, processes=processes) as judges:
        for _ in range(2):
            judged = judges.judge(file, ROWS)
            assert judged.values == [float(i) for i in range(ROWS)]
            assert (judged.unjudged, judged.reasons) == (0, {})


def test_whatever_becomes_of_its_process(file: Path) -> None:
    @reward("odd", seconds=1)
    def odd(row: dict[str, Any]) -> Any:
        import re

        match 2 * row["prompt_index"] + row["sample_index"]:
            case 1:
                while True:
                    pass
            case 2:  # deaf to signals, and keeps the interpreter's lock
                re.match(r"(a+)+$", "a" * 60 + "b")
            case 3:
                os._exit(3)
            case 4:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 5:
                return bytearray(10**11)
            case 6:
                sys.exit(0)
            case 7:
                raise ValueError("no\nmore")
            case 8:
                return None
            case 9:
                return "1"
            case 10:
                return float("nan")
            case 11:
                return True
            case 12:
                print("this must reach nobody")
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return 0.25

    began = time.monotonic()
    with Judges(odd, processes=1) as judges:
        judged = judges.judge(file, ROWS)
    assert time.monotonic() - began < 60
    assert judged.values == [0.25] + 10 * [None] + [1.0] + (ROWS - 12) * [0.25]
    assert judged.unjudged == 10
    assert judged.reasons == {
        "its process took longer than 1 s for it": 2,
        "its process ended with exit code 3": 1,
        "its process was ended by signal 11": 1,
        "it raised MemoryError: without a word": 1,
        "its process ended with exit code 0": 1,
        "it raised ValueError: no": 1,
        "it gave no verdict": 1,
        "it returned str '1', no finite number": 1,
        "it returned float 'nan', no finite number": 1,
    }


def test_an_answer_that_keeps_mathematics_busy_for_ever(tmp_path: Path) -> None:
    """A tower of powers that math-verify would work out: not judged, and those behind it are."""
    answers = ["4", "9^{9^{9^{9}}}", r"\frac{8}{2}", "5"]
    rows = [
        {"prompt_index": i, "sample_index": 0, "response": f"<answer>{answer}</answer>", "answer": "4"}
        for i, answer in enumerate(answers)
    ]
    write_rows(tmp_path / "towers.parquet", rows)
    with Judges("math_answer") as judges:
        judged = judges.judge(tmp_path / "towers.parquet", len(rows))
    assert judged.values == [1.0, None, 1.0, 0.0]
    assert judged.reasons == {"its process took longer than 5 s for it": 1}


def test_memory_is_limited_also_bit_by_bit(file: Path) -> None:
    @reward("hungry", seconds=60)
    def hungry(row: dict[str, Any]) -> float:
        held = []
        while row["sample_index"] == 0:
            held.append(bytearray(10**8))
        return 1.0

    with Judges(hungry, processes=1) as judges:
        judged = judges.judge(file, 4)
    assert judged.values == [None, 1.0, None, 1.0]


@pytest.mark.parametrize("columns", [None, ("margins", "top_ids")])
def test_diagnostics_are_columns_like_others(tmp_path: Path, columns: tuple[str, ...] | None) -> None:
    rows = [
        {"prompt_index": i, "sample_index": 0, "margins": [float(i), 1.0], "top_ids": [[i, 3], [4, 5]]}
        for i in range(3)
    ]
    write_rows(tmp_path / "shard.parquet", rows)

    @reward("sure", columns=columns)
    def sure(row: dict[str, Any]) -> float:
        return float(sum(row["margins"]) + row["top_ids"][0][0])

    with Judges(sure, processes=1) as judges:
        assert judges.judge(tmp_path / "shard.parquet", 3).values == [1.0, 3.0, 5.0]


def test_a_reward_that_cannot_be_run(file: Path) -> None:
    with pytest.raises(UsageError, match="there is no reward 'nope'; installed are math_answer, "):
        Judges("nope")
    said = "reward a cannot be run: sequences have no column nope; columns are prompt_index"
    with Judges(reward("a", columns=("nope",))(place)) as judges, pytest.raises(CannotJudge, match=said):
        judges.judge(file, ROWS)
    said = r"sequences have no column margins \(a job keeps it with --diagnostics margins\); columns are prompt_index"
    with Judges(reward("a", columns=("margins",))(place)) as judges, pytest.raises(CannotJudge, match=said):
        judges.judge(file, ROWS)
    numbers = (number for number in range(3))
    with pytest.raises(UsageError, match=r"reward b cannot be sent to a process of its own .*generator"):
        Judges(lambda row: next(numbers), "b")
    with Judges(place, "c") as judges, pytest.raises(CannotJudge, match=f"{file}x is missing"):
        judges.judge(Path(f"{file}x"), ROWS)


def test_what_look_raises_ends_it_and_its_processes(file: Path) -> None:
    @reward("slow", seconds=600)
    def slow(row: dict[str, Any]) -> float:
        time.sleep(600)
        return 1.0

    class Stop(Exception):
        pass

    def look() -> None:
        if time.monotonic() - began > 3:
            raise Stop

    began = time.monotonic()
    before = set(psutil.Process().children())
    with pytest.raises(Stop), Judges(slow, processes=2) as judges:
        judges.judge(file, ROWS, look)
    assert time.monotonic() - began < 30
    assert set(psutil.Process().children()) <= before


def test_no_process_outlives_its_parent(file: Path, tmp_path: Path) -> None:
    """The parent is killed while one row hangs: the process ends by itself, though nobody is left to kill it."""
    script = textwrap.dedent(f"""
        from pathlib import Path
        from jobs.rewards import reward
        from jobs.rewards.judge import Judges

        @reward("stuck", seconds=2)
        def stuck(row):
            import os
            Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
            while True:
                pass

        Judges(stuck, processes=1).judge(Path({str(file)!r}), 1)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
    orphan = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(orphan) and psutil.Process(orphan).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it goes on for ever"
        time.sleep(0.1)


def test_a_function_of_the_script_that_runs(file: Path) -> None:
    """Of a script without a guard for `__main__`, and of a notebook's cell, nothing can be imported."""
    script = textwrap.dedent(f"""
        from pathlib import Path
        from jobs.rewards.judge import Judges
        print("ran")
        TEN = 10

        def times(row):
            return TEN * row["sample_index"]

        print(Judges(times).judge(Path({str(file)!r}), {ROWS}).values[:4])
    """)
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "ran\n[0.0, 10.0, 0.0, 10.0]\n"
