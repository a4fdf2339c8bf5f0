"""The same job again, as a command line and as Python: what is not a default, and the seed, so that it draws the same.

What the job's end was to trigger (webhook) and its idempotency key are left out: another submit is another job.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.cli.spec_options import flag
from jobs.snapshot import SnapshotRow
from jobs.spec import JobSpec
from jobs.text import clean_line

PROMPTS_FILE = "prompts.jsonl"
_LEFT_OUT = ("prompts", "file", "webhook", "idempotency_key")
_OF_A_SOURCE = ("columns", "num_prompts", "replacement")  # the file to submit has the job's own prompts
_SHOWN_PROMPTS = 4
_SHOWN_CHARACTERS = 300


def few_texts(rows: Sequence[SnapshotRow]) -> list[str] | None:
    """The prompts as texts, if they are few and nothing but short texts: short enough to stand in a command."""
    texts = [row.prompt for row in rows if row.prompt is not None and _is_plain(row)]
    short = len(rows) <= _SHOWN_PROMPTS and sum(map(len, texts)) <= _SHOWN_CHARACTERS
    return texts if short and len(texts) == len(rows) else None


def as_command(spec: JobSpec, prompts: list[str] | None) -> str:
    """`seqproc submit …`. `prompts`: its texts; None: they come from the dataset, or else from `PROMPTS_FILE`."""
    words = ["seqproc submit"] + ([PROMPTS_FILE] if _needs_file(spec, prompts) else [])
    options = [_option("prompts", text) for text in prompts or ()]
    for name, value in _told(spec):
        if isinstance(value, bool):
            options.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
        elif name in ("labels", "columns"):
            options += [_option(name, f"{key}={text}") for key, text in value.items()]
        elif isinstance(value, dict):
            options.append(_option(name, json.dumps(value)))
        elif isinstance(value, tuple):
            options += [_option(name, text) for text in value or ("",)]
        else:
            options.append(_option(name, str(value)))
    return " \\\n  ".join([" ".join(words), *options])


def as_python(spec: JobSpec, prompts: list[str] | None) -> str:
    """A program that submits the job, waits and reads what came out. `prompts` as of `as_command`."""
    arguments = dict(_told(spec))
    if prompts is not None:
        arguments["prompts"] = prompts
    elif _needs_file(spec, prompts):
        arguments["file"] = PROMPTS_FILE
    lines = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    return (
        "from jobs import Client\n\n"
        f"job = Client().submit(\n{lines})\n"
        "job.wait()\n"
        "sequences, logprobs = job.to_batched()\n"
    )


def _needs_file(spec: JobSpec, prompts: list[str] | None) -> bool:
    return prompts is None and spec.dataset is None and spec.source is None


def _told(spec: JobSpec) -> Iterator[tuple[str, Any]]:
    """The fields to give: those that are not as they are by default, nor follow from others."""
    for name, field in JobSpec.model_fields.items():
        value = getattr(spec, name)
        by_default = not field.is_required() and value == field.get_default(call_default_factory=True)
        if name == "G" and spec.replacement and spec.dataset is not None:
            by_default = value == 1
        follows = (
            (name == "prompt_seed" and (value == spec.seed or spec.dataset is None))
            or (name in _OF_A_SOURCE and spec.dataset is None)
            or (name == "G" and spec.kind == "score")
        )
        if name not in _LEFT_OUT and not by_default and not follows:
            yield name, value


def _is_plain(row: SnapshotRow) -> bool:
    more = (row.answer, row.response, row.response_token_ids)
    named = row.custom_id != str(row.prompt_index)
    return row.prompt is not None and not named and not any(more) and clean_line(row.prompt) == row.prompt


def _option(name: str, text: str) -> str:
    quoted = shlex.quote(text) if text.isprintable() else f"$'{''.join(map(_escaped, text))}'"
    return f"{flag(name)}={quoted}" if text.startswith("-") and len(name) > 1 else f"{flag(name)} {quoted}"


def _escaped(character: str) -> str:
    """As bash and zsh read it between $' and '."""
    if character in "\\'":
        return f"\\{character}"
    code = ord(character)
    return character if character.isprintable() else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
