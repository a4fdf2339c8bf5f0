"""Which rewards there are: those that packages bring by the entry-point group `seqproc.rewards`, ours among them.

A worker finds a reward by its name alone, so a job may name only what is installed there. A function that is not
installed can be handed to `job.reward` as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from jobs.errors import UsageError

GROUP = "seqproc.rewards"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_SECONDS = 10.0  # for one sequence, unless the reward asks for more

Verdict = float | bool | None
Function = Callable[[dict[str, Any]], Verdict]


@dataclass(frozen=True, slots=True)
class Reward:
    """A function that judges one sequence. Calling a Reward calls the function."""

    name: str  # of its column, after `reward_`
    function: Function
    columns: tuple[str, ...] | None = None  # of a shard's file that it reads; None: all
    seconds: float = _SECONDS  # for one sequence, after which it counts as not judged

    def __call__(self, row: dict[str, Any]) -> Verdict:
        return self.function(row)


def reward(
    name: str, *, columns: tuple[str, ...] | None = None, seconds: float = _SECONDS
) -> Callable[[Function], Reward]:
    """Makes a function the reward `name`: a letter, then letters, digits and underscores, 64 at most.

    Args:
        columns: what the function reads of a row; naming few saves reading the others. None: all.
        seconds: limit for one sequence.

    Raises:
        UsageError: for another name, or a limit that is none.
    """
    check_name(name)
    if not seconds > 0:
        raise UsageError(f"reward {name}: seconds is {seconds}; give the limit for one sequence, more than 0")
    return lambda function: Reward(name, function, columns, seconds)


def as_reward(function: Function | Reward, name: str | None) -> Reward:
    """A function, or a Reward, under this name or its own. Raises UsageError if it has none that can be a column's."""
    if isinstance(function, Reward):
        return function if name is None else Reward(check_name(name), *_rest(function))
    own = getattr(function, "__name__", "")
    if name is None and not NAME.fullmatch(own):
        raise UsageError(f"the reward function {own or function!r} has no name for a column; give one with name=…")
    return Reward(check_name(name or own), function)


def check_name(name: str) -> str:
    """The name. Raises UsageError if no reward may have it."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of a reward: give a letter, then letters, digits and underscores, 64 at most"
        )
    return name


def installed() -> list[str]:
    """The names of all installed rewards, sorted; none is imported for it."""
    return sorted(_entries())


def unknown(name: str) -> str | None:
    """Why no installed reward has this name; None if one has."""
    names = installed()
    return None if name in names else f"there is no reward {name!r}; installed are {', '.join(names)}"


def named(name: str) -> Reward:
    """The installed reward of this name, imported now. Raises UsageError."""
    why = unknown(name)
    if why is not None:
        raise UsageError(why)
    found = _entries()[name].load()
    if not callable(found):
        raise UsageError(f"reward {name}: {_entries()[name].value} is no function; decorate one with @reward")
    return as_reward(found, name)


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP) if NAME.fullmatch(entry.name)}


def _rest(reward: Reward) -> tuple[Any, ...]:
    return reward.function, reward.columns, reward.seconds
