"""One prompt's responses as they are shown: tokens with their tints and figures, headings, and their order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jobs.gold import is_correct
from jobs.reward_figures import BY_DEFAULT
from jobs.sidecars import REWARD
from jobs.text import STEERING, minus, plural
from jobs.tint import tint_of

By = Literal["logprob", "entropy", "sampling_logprob", "sampling_entropy"]
COLUMNS: dict[By, str] = {
    "logprob": "logprobs",
    "entropy": "entropies",
    "sampling_logprob": "sampling_logprobs",
    "sampling_entropy": "sampling_entropies",
}
Sort = Literal["sample", "tokens", "sum", "mean"]

_NAMES = {
    "logprobs": "log p",
    "entropies": "entropy",
    "sampling_logprobs": "sampling log q",
    "sampling_entropies": "sampling entropy",
}
_SPELLED = {code: f"\\u{code:04x}" for code in STEERING}


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is shown. `css` are its classes, `figures` all that was measured of it."""

    text: str
    css: str
    figures: str


@dataclass(frozen=True, slots=True)
class Passage:
    """The tokens [start, stop) of one response, with the heading of the whole."""

    sample: int
    heading: list[str]
    correct: bool | None  # None: there is no gold answer, or the reward that tells right from wrong has not judged it
    tokens: list[Token]
    start: int
    stop: int
    length: int  # tokens of the whole response


def ordered(rows: list[dict[str, Any]], column: str | None, sort: Sort, *, descending: bool) -> list[dict[str, Any]]:
    """A prompt's rows by sample, length, or the sum or mean of a measurement; equals stay in order of their samples."""

    def key(row: dict[str, Any]) -> float:
        if sort == "tokens":
            return len(row["response_ids"])
        if sort == "sample" or column is None:
            return int(row["sample_index"])
        values = row[column].astype(np.float64)
        return float(values.sum() if sort == "sum" else values.mean() if len(values) else 0.0)

    return sorted(rows, key=key, reverse=descending)


def passage(row: dict[str, Any], by: By | None, start: int, count: int) -> Passage:
    """The response of a row, `count` tokens of it from `start`, tinted by a measurement."""
    length = len(row["response_ids"])
    stop = min(start + count, length)
    return Passage(
        sample=row["sample_index"],
        heading=list(_heading(row, sampling=by is not None and by.startswith("sampling"))),
        correct=_correct(row),
        tokens=list(_tokens(row, by, min(start, length), stop)),
        start=start,
        stop=stop,
        length=length,
    )


def prompt_text(row: dict[str, Any]) -> str:
    """The prompt as it was given; a chat one message after another."""
    text = row["prompt"]
    if text is None:
        return " ".join(map(str, row["prompt_ids"]))
    if text.startswith('[{"'):
        try:
            return "\n\n".join(f"{message['role']}: {message['content']}" for message in json.loads(text))
        except (ValueError, TypeError, KeyError):
            pass  # a text that begins like a chat
    return str(text)


def _correct(row: dict[str, Any]) -> bool | None:
    """By `math_answer` where the job has it, else by equal text, as in a report."""
    if (column := f"{REWARD}_{BY_DEFAULT}") in row:
        return None if row[column] is None else bool(row[column])
    return None if row["answer"] is None else is_correct(row["response"], row["answer"])


def _heading(row: dict[str, Any], *, sampling: bool) -> Iterator[str]:
    """`142 tokens`, `stop`, `log-probability −12.345 nats`, `mean entropy 0.213 nats`, and by name each reward."""
    tokens, which = len(row["response_ids"]), "sampling " if sampling else ""
    logprobs, entropies = (row[which.replace(" ", "_") + name] for name in ("logprobs", "entropies"))
    yield plural(tokens, "token")
    yield str(row["finish_reason"])
    if logprobs is not None:
        yield f"{which}log-probability {nats(float(logprobs.sum(dtype=np.float64)))} nats"
    if entropies is not None and tokens:
        yield f"mean {which}entropy {nats(float(entropies.mean(dtype=np.float64)))} nats"
    for column in row:
        if column.startswith(f"{REWARD}_"):
            value = row[column]
            yield f"{column.removeprefix(f'{REWARD}_')} {'not judged' if value is None else minus(f'{value:.4g}')}"


def _tokens(row: dict[str, Any], by: By | None, first: int, stop: int) -> Iterator[Token]:
    """A character that several tokens make up belongs to the one that completes it."""
    text, ends, ids = row["response"], row["token_ends"].tolist(), row["response_ids"].tolist()
    measured = {name: row[name].tolist() for name in _NAMES if row[name] is not None}
    tinting = measured.get(COLUMNS[by]) if by else None
    sign = -1 if by and by.endswith("logprob") else 1
    for i in range(first, stop):
        piece = text[ends[i - 1] if i else 0 : ends[i]]
        css = f"t{tint_of(sign * tinting[i])}" if tinting else "t0"
        if not all(math.isfinite(values[i]) for values in measured.values()):
            css += " infinite"
        if not piece.strip():
            css += " line-break" if "\n" in piece else "" if piece else " nothing"
        figures = [f"{_spelled(piece)} · id {ids[i]} · position {i}"]
        figures += [f"{name} {nats(measured[column][i])}" for column, name in _NAMES.items() if column in measured]
        yield Token(piece, css, " · ".join(figures) + (" nats" if measured else ""))


def nats(value: float) -> str:
    """A figure as it is read: `−1.2345`, and of what is smaller than that can show `−3.2e−05`."""
    small = 0 < abs(value) < 0.001
    return minus(f"{value + 0.0:{'.1e' if small else '.4f'}}").replace("inf", "∞")


def _spelled(text: str) -> str:
    """`text` in quotes, with each character that is obeyed and not shown, line breaks too, as JSON spells it."""
    return json.dumps(text, ensure_ascii=False).translate(_SPELLED)
