"""`seqproc report`: one row a job, as a table, Markdown and JSON."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pexpect
import pytest

from tests.cli.conftest import Run, the_json


def test_two_jobs_side_by_side(seqproc: Run, finished: str) -> None:
    result = seqproc("report", finished, finished[:8])
    header, *rows = result.stdout.splitlines()
    assert header.split()[:3] == ["ID", "MODEL", "SEQUENCES"] and len(rows) == 2
    assert rows[0] == rows[1] and finished in rows[0] and "−1.5250" in rows[0]
    assert "ACCURACY" not in header, "there are no gold answers"


def test_the_other_forms(seqproc: Run, finished: str) -> None:
    made = the_json(seqproc("report", finished, "--json"))
    assert (made["id"], made["sequences"], made["prompt_errors"], made["accuracy"]) == (finished, 4, 1, None)
    assert made["logprob"]["mean"] == pytest.approx(-1.525) and made["entropy"]["mean"] == pytest.approx(0.5)
    assert made["apart"] is None, "a token that the sampling distribution does not have: not a sample of it"
    assert [job["id"] for job in the_json(seqproc("report", finished, finished, "--json"))] == 2 * [finished]
    lines = seqproc("report", finished, "--markdown").stdout.splitlines()
    assert lines[0].startswith("| ID | MODEL |") and set(lines[1]) == set("| -") and len(lines) == 3
    assert seqproc("report", finished, "-q").stdout == f"{finished}\n"


def test_a_page_beside_the_table(seqproc: Run, finished: str, tmp_path: Path) -> None:
    plain = seqproc("report", finished)
    result = seqproc("report", finished, "--html", "one.html")
    assert (result.exit_code, result.stdout) == (0, plain.stdout) and "Wrote one.html" in result.stderr
    page = Path("one.html").read_text()
    assert finished in page and page.count("<figure") > 4
    assert the_json(seqproc("report", finished, finished, "--html", "two.html", "--json"))[1]["id"] == finished
    assert "Report on 2 jobs" in Path("two.html").read_text()
    nowhere = seqproc("report", finished, "--html", "nowhere/one.html")
    assert nowhere.exit_code == 2 and "there is no folder nowhere" in nowhere.stderr
    folder = seqproc("report", finished, "--html", str(tmp_path))
    assert folder.exit_code == 2 and "is a folder" in folder.stderr


def test_drift_is_told_or_said_to_be_unknown(seqproc: Run, finished: str) -> None:
    assert "Drift from float32 was not measured: no worker has told of it." in seqproc("report", finished).stderr
    assert the_json(seqproc("report", finished, "--json"))["drift"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal that is a file")
def test_a_terminal_of_80_columns(seqproc: Run, finished: str) -> None:
    """Every column is there and no line is cut."""
    plain = seqproc("report", finished, finished).stdout.split()
    child = pexpect.spawn(sys.executable, ["-m", "jobs", "report", finished, finished], dimensions=(40, 80))
    child.expect(pexpect.EOF, timeout=60)
    text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", child.before.decode())
    assert set(plain) <= set(text.split()) and "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines() if "━" not in line and "Drift" not in line) <= 80


def test_what_cannot_be_reported(seqproc: Run, submitted: str) -> None:
    early = seqproc("report", submitted)
    assert early.exit_code == 1 and "--partial" in early.stderr
    partial = the_json(seqproc("report", submitted, "--partial", "--json"))
    assert (partial["id"], partial["sequences"], partial["entropy"]) == (submitted, 0, None)
    assert seqproc("report", submitted, "--json", "--markdown").exit_code == 2
    assert "no job nothing" in seqproc("report", "nothing").stderr
    assert seqproc("report").exit_code == 2
