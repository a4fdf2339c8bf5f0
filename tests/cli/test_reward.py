"""`seqproc reward`: judge what was made, say how it went, and go on where it was."""

from __future__ import annotations

import pytest

from jobs.client import Client
from tests.cli.conftest import Run, do_shard, row, the_json


@pytest.fixture
def answered(seqproc: Run, client: Client) -> str:
    """Two prompts in two shards: right, wrong, without a block; and one without a gold answer."""
    prompts = ["--prompts", "a", "--prompts", "b", "--shard-size", "1"]
    job = seqproc("submit", "--model", "m/m", *prompts, "-G", "2", "-dq").stdout.strip()
    texts = ["<answer>1/2</answer>", "<answer>3</answer>", "0.5", "<answer>0.5</answer>"]
    for prompt in (0, 1):
        rows = [row(prompt, g, response=texts[2 * prompt + g], answer="0.5", token_ends=[1, 2]) for g in (0, 1)]
        rows[1]["answer"] = None if prompt else "0.5"
        do_shard(client, job, rows)
    return job


def test_told_and_kept(seqproc: Run, answered: str, client: Client) -> None:
    result = seqproc("reward", answered, "--reward", "math_answer", "--reward", "tag_format")
    assert result.exit_code == 0
    header, first, second = (line.split() for line in result.stdout.splitlines())
    assert header == ["REWARD", "SEQUENCES", "MEAN", "UNJUDGED", "SHARDS", "SKIPPED"]
    assert (first, second) == (
        ["math_answer", "4", "0.3333", "1", "2", "0"],
        ["tag_format", "4", "0.0000", "0", "2", "0"],
    )
    assert "math_answer: 1 sequence not judged: it gave no verdict" in result.stderr
    assert [found["reward_math_answer"] for found in client.get(answered).rows()] == [1.0, 0.0, 0.0, None]
    shown = seqproc("show", answered).stdout
    assert "reward_math_answer 1," in shown and "reward_math_answer not judged" in shown


def test_the_other_forms(seqproc: Run, answered: str) -> None:
    made = the_json(seqproc("reward", answered, "--reward", "math_answer", "--json"))
    assert made["id"] == answered
    [one] = made["rewards"]
    assert (one["unjudged"], one["shards"], one["mean"]) == (1, 2, pytest.approx(1 / 3))
    [one] = the_json(seqproc("reward", answered, "--reward", "math_answer", "--json"))["rewards"]
    assert (one["unjudged"], one["shards"], one["skipped"], one["mean"]) == (1, 0, 2, pytest.approx(1 / 3))
    [one] = the_json(seqproc("reward", answered, "--reward", "math_answer", "--again", "--json"))["rewards"]
    assert (one["shards"], one["skipped"]) == (2, 0)
    assert seqproc("reward", answered, "--reward", "tag_format", "-q").stdout == f"{answered}\n"


def test_asked_wrongly(seqproc: Run, answered: str, submitted: str) -> None:
    none = seqproc("reward", answered)
    assert (
        none.exit_code == 2 and "was submitted without rewards: name one with --reward (math_answer, t" in none.stderr
    )
    both = seqproc("reward", answered, "--reward", "nope", "--reward", "math_answer")
    assert both.exit_code == 2 and "--reward: there is no reward 'nope'; installed are" in both.stderr
    early = seqproc("reward", submitted, "--reward", "tag_format")
    assert early.exit_code == 1 and "--partial" in early.stderr
    assert seqproc("reward", submitted, "--reward", "tag_format", "--partial", "-q").exit_code == 0


def test_a_report_by_it(seqproc: Run, answered: str) -> None:
    plain = the_json(seqproc("report", answered, "--json"))
    assert (plain["reward"], plain["judged"], plain["accuracy"][0]) == (None, 3, 0.0), "1/2 is not the text 0.5"
    missing = seqproc("report", answered, "--reward", "math_answer")
    assert missing.exit_code == 2 and f"judge it: seqproc reward {answered} --reward math_answer" in missing.stderr
    seqproc("reward", answered, "--reward", "math_answer")
    made = the_json(seqproc("report", answered, "--json"))
    assert (made["reward"], made["judged"], made["unjudged"]) == ("math_answer", 3, 1)
    assert made["accuracy"][0] == pytest.approx((1 / 2 + 0 / 1) / 2), "each prompt counts the same"
    header, told = seqproc("report", answered).stdout.splitlines()
    assert "UNJUDGED" in header and "25.0 %" in told and "REWARD" not in header and "math_answer" in told
