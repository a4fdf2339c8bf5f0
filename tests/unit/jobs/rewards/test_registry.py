"""Which rewards there are, and what may be one."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from jobs.errors import UsageError
from jobs.rewards import Reward, installed, named, registry, reward
from jobs.rewards.registry import as_reward, unknown


def test_what_is_installed() -> None:
    assert {"math_answer", "tag_format"} <= set(installed())
    assert named("tag_format")({"response": " a </think> <answer> 4 </answer>"}) == 1.0
    assert unknown("math_answer") is None
    assert unknown("nope") == f"there is no reward 'nope'; installed are {', '.join(installed())}"
    with pytest.raises(UsageError, match="there is no reward 'nope'"):
        named("nope")


def test_ones_own_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint(name, "builtins:len", registry.GROUP) for name in ("mine", "no name")]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == "seqproc.rewards" else [])
    assert installed() == ["mine"], "what cannot be a column is none"
    assert named("mine")({"a": 1, "b": 2}) == 2
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("odd", "sys:path", group)])
    with pytest.raises(UsageError, match="reward odd: sys:path is no function; decorate one with @reward"):
        named("odd")


def test_the_decorator() -> None:
    @reward("short", columns=("response",), seconds=3)
    def judge(row: dict[str, Any]) -> bool:
        return len(row["response"]) < 3

    assert isinstance(judge, Reward)
    assert (judge.name, judge.columns, judge.seconds) == ("short", ("response",), 3)
    assert judge({"response": "ab"}) is True
    assert as_reward(judge, "other").name == "other"
    assert as_reward(lambda row: 1.0, "mine").seconds == 10


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "../x", "a" * 65, "é", "a\n"])
def test_a_name_that_no_column_may_have(name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a reward: give a letter, then"):
        reward(name)


def test_a_function_without_a_name() -> None:
    with pytest.raises(UsageError, match="the reward function '<lambda>' has no name for a column"):
        as_reward(lambda row: 1.0, None)
    with pytest.raises(UsageError, match="seconds is 0; give the limit"):
        reward("a", seconds=0)


def test_asking_for_names_imports_no_reward() -> None:
    script = (
        "import sys; from jobs.rewards import installed; assert installed(); "
        "print([m for m in sys.modules if m.startswith(('jobs.rewards.math', 'sympy', 'math_verify', 'pyarrow'))])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
