"""Lines of an OpenAI batch as prompts: `{"custom_id": …, "method": "POST", "url": …, "body": {"messages": […], …}}`.

A line is known by its `body`, an object beside which it has no prompt of ours. Its `messages` (or `prompt`) and
`custom_id` are the prompt; an `answer` beside them is taken too.

A job has one value of each setting for all of its prompts, and the spec says which. So a setting in a body never
changes the job: where it says what the job does anyway it is agreed, and where it says something else, that is a
problem, one a setting, which tells what to give. What a job cannot do at all (tools, penalties) is a problem as well.
Only `model`, which names somebody else's, and what changes no token are left alone; both are told.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.spec import JobSpec

_ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
_ENVELOPE = ("method", "url", "body")
_PROMPTS = ("messages", "prompt")
_SETTINGS = {  # of a body: the job's own
    "temperature": "temperature",
    "top_p": "top_p",
    "n": "G",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "stop": "stop_strings",
    "seed": "seed",
}
_SAYS_NOTHING: tuple[Any, ...] = (None, 0, False, "", [], {}, {"type": "text"})  # of what a job cannot do
_CHANGES_NO_TOKEN = (
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
    "store",
    "metadata",
    "user",
    "service_tier",
)


@dataclass(slots=True)
class _Contradiction:
    """One setting of the lines that the job does not have so: where first, what there, and in how many lines."""

    number: int  # of the first row that has it
    value: Any
    lines: int = 0
    same: bool = True  # in all of those lines


class OpenAIBatch:
    """Turns such lines into prompts of a job, and gathers what their bodies ask for that the job does not do."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._lines = 0
        self._found: dict[str, _Contradiction] = {}

    def __call__(self, number: int, row: Any) -> Any:
        """The prompt of a line, as a dict; any other row as it is. What it leaves alone is a key `body.NAME`.

        Raises ValueError for a line that asks for something else than a completion.
        """
        if not _is_line(row):
            return row
        if row.get("url") not in (None, *_ENDPOINTS):
            known = " and ".join(_ENDPOINTS)
            raise ValueError(f"url: {reprlib.repr(row['url'])} is none of completions; a job takes {known}")
        self._lines += 1
        body: dict[str, Any] = row["body"]
        prompt = {name: value for name, value in row.items() if name not in _ENVELOPE}
        for name, value in body.items():
            if name in _PROMPTS:
                if value is not None:
                    prompt |= _prompt(name, value)
            elif name == "model" or name in _CHANGES_NO_TOKEN:
                if name != "model" or value != self._spec.model:
                    prompt[f"body.{name}"] = value
            elif not self._agrees(name, value):
                self._note(name, number, value)
        return prompt

    def problems(self, place: Callable[[int], str]) -> list[str]:
        """A line for each setting in which lines and job disagree, once all lines are through."""
        return [f"{place(found.number)} {self._sentence(name, found)}" for name, found in self._found.items()]

    def _agrees(self, name: str, value: Any) -> bool:
        if name not in _SETTINGS:
            return any(value == nothing for nothing in _SAYS_NOTHING)
        return value is None or _ours(name, value) == getattr(self._spec, _SETTINGS[name])

    def _note(self, name: str, number: int, value: Any) -> None:
        found = self._found.setdefault(name, _Contradiction(number, value))
        found.lines += 1
        found.same = found.same and found.value == value

    def _sentence(self, name: str, found: _Contradiction) -> str:
        start = f"body.{name}: is {_shown(found.value)}"
        lines = f"{found.lines:,} of {self._lines:,} lines"
        if name not in _SETTINGS:
            return f"{start} (set in {lines}), and a job cannot do that; take it out of the lines"
        ours = _SETTINGS[name]
        if found.same and found.lines == self._lines:
            return (
                f"{start} in every line, but the job has {ours}={_shown(getattr(self._spec, ours))}; "
                f"submit with {ours}={_shown(_ours(name, found.value))}, or take it out of the lines"
            )
        return (
            f"{start}, and {lines} differ from the job's {ours}={_shown(getattr(self._spec, ours))}, not all alike; "
            f"a job has one {ours}: submit the lines of each value as a job of their own, or take it out of the lines"
        )


def _is_line(row: Any) -> bool:
    own = ("prompt", "messages", "prompt_token_ids")
    return isinstance(row, dict) and isinstance(row.get("body"), dict) and not any(name in row for name in own)


def _prompt(name: str, value: Any) -> dict[str, Any]:
    """`prompt` may be a text or token ids; a list of several prompts is left for the check of rows to refuse."""
    is_ids = name == "prompt" and isinstance(value, list) and value and all(isinstance(item, int) for item in value)
    return {"prompt_token_ids" if is_ids else name: value}


def _ours(name: str, value: Any) -> Any:
    """A value of a body as the job would have it."""
    if name != "stop":
        return value
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, str | dict) else json.dumps(value, ensure_ascii=False, default=str)
