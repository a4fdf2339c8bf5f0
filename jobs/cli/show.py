"""`show`: responses as text, each token tinted by how surprising it was, or how open the choice was.

Both are shown on one scale in nats: −log p of the token, or the entropy of the distribution it was drawn from.
Without colours the text stands plain, with the sums in its heading.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.output import JobArgument, JsonFlag, Output, QuietFlag, stdout_console
from jobs.errors import UsageError
from jobs.text import clean, clean_line, plural
from jobs.tint import NAMES, tint_of

if TYPE_CHECKING:
    from rich.text import Text

# Pale to deep in 256 colours, and five different ones also where a terminal has only 16.
_TINTS = ("", *(f"black on color({n})" for n in (230, 221, 209, 205)), "white on color(160)")


class By(StrEnum):
    """What tints a token."""

    LOGPROB = "logprob"
    ENTROPY = "entropy"


_COLUMNS = {By.LOGPROB: "logprobs", By.ENTROPY: "entropies"}


def show(
    job: JobArgument,
    prompt: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only this prompt, counted from 0.")] = None,
    by: Annotated[By, typer.Option(help="What tints each token.")] = By.LOGPROB,
    number: Annotated[int, typer.Option("-n", min=1, metavar="COUNT", help="Show so many sequences.")] = 8,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Show responses as text.

    On a colour terminal each token is tinted by its log-probability or entropy. Works while the job runs.
    """
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        handle = client.get(job)
        total = handle.record.num_prompts
        if prompt is not None and prompt >= total:
            raise UsageError(
                f"job {handle.id} has {plural(total, 'prompt')}, counted from 0; there is no prompt {prompt}"
            )
        if _COLUMNS[by] not in handle.record.spec["measurements"]:
            raise UsageError(f"job {handle.id} did not measure {_COLUMNS[by]}; it has {_measured(handle.record.spec)}")
        rows = list(islice(_wanted(handle.results.rows(partial=True), prompt), number))
        state = handle.refresh().state
    if out.as_json:
        out.json(rows)
        return
    if out.quiet:
        out.data(handle.id)
        return
    if rows:
        _print(rows, by)
    else:
        out.hint(
            f"Nothing to show yet: job {handle.id} is {state}." if not state.ended else "No sequence was finished."
        )


def _measured(spec: dict[str, Any]) -> str:
    return ", ".join(spec["measurements"]) or "no measurements"


def _wanted(rows: Iterator[dict[str, Any]], prompt: int | None) -> Iterator[dict[str, Any]]:
    """The rows of one prompt, or all; rows come in order, so reading ends with the prompt's last."""
    for row in rows:
        if prompt is None or row["prompt_index"] == prompt:
            yield row
        elif row["prompt_index"] > prompt:
            return


def _print(rows: list[dict[str, Any]], by: By) -> None:
    console = stdout_console()
    tinted = console.is_terminal and console.color_system is not None and not console.no_color
    if not tinted:
        typer.echo("\n".join(line for row in rows for line in (_heading(row), _plain_text(row))))
        return
    from rich.text import Text

    last = None
    for row in rows:
        if row["prompt_index"] != last:
            last = row["prompt_index"]
            console.print(Text(f"{clean(row['prompt'] or '')}", style="dim"))
        console.print(Text(_heading(row), style="bold"))
        console.print(_tint(row, by))
    console.print(_legend(by))


def _heading(row: dict[str, Any]) -> str:
    """`[0.3 train-17] 42 tokens, stop, log-probability -12.345 nats, mean entropy 0.213 nats`."""
    tokens = len(row["response_ids"])
    parts = [plural(tokens, "token"), str(row["finish_reason"])]
    if row["logprobs"] is not None:
        parts.append(f"log-probability {sum(row['logprobs']):.3f} nats")
    if row["entropies"] is not None and tokens:
        parts.append(f"mean entropy {sum(row['entropies']) / tokens:.3f} nats")
    parts += [
        f"{name} {'not judged' if row[name] is None else f'{row[name]:g}'}"
        for name in row
        if name.startswith("reward_")
    ]
    name = f"{row['prompt_index']}.{row['sample_index']} {row['custom_id']}"
    return clean_line(f"[{name}] {', '.join(parts)}")


def _plain_text(row: dict[str, Any]) -> str:
    return clean(row["response"])


def _tint(row: dict[str, Any], by: By) -> Text:
    """The response, token by token; a character that several tokens make up is tinted by the one that completes it."""
    from rich.text import Text

    text, start = Text(), 0
    for end, value in zip(row["token_ends"], row[_COLUMNS[by]], strict=True):
        text.append(clean(row["response"][start:end]), style=_TINTS[tint_of(-value if by is By.LOGPROB else value)])
        start = end
    return text


def _legend(by: By) -> Text:
    from rich.text import Text

    text = Text("−log p, nats:" if by is By.LOGPROB else "entropy, nats:")
    for name, style in zip(NAMES, _TINTS, strict=True):
        text.append(" ").append(f" {name} ", style=style)
    return text
