"""`seqproc report`: one row a job, as a table, Markdown and JSON."""

from __future__ import annotations

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


def test_what_cannot_be_reported(seqproc: Run, submitted: str) -> None:
    early = seqproc("report", submitted)
    assert early.exit_code == 1 and "--partial" in early.stderr
    partial = the_json(seqproc("report", submitted, "--partial", "--json"))
    assert (partial["id"], partial["sequences"], partial["entropy"]) == (submitted, 0, None)
    assert seqproc("report", submitted, "--json", "--markdown").exit_code == 2
    assert "no job nothing" in seqproc("report", "nothing").stderr
    assert seqproc("report").exit_code == 2
