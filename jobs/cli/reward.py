"""`reward`: judge the sequences of a job that has been made, and keep the verdicts beside them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.output import JobArgument, JsonFlag, Output, QuietFlag, stderr_console
from jobs.errors import UsageError
from jobs.text import minus, plural

if TYPE_CHECKING:
    from jobs.client import JobHandle
    from jobs.rewards.afterwards import Rewarded

_REASONS_SHOWN = 3


def reward(
    job: JobArgument,
    names: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="NAME", help="An installed reward; default: those of the job. [repeatable]"),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Judge anew what was judged before.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Take what there is of an unfinished job.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Judge a job's sequences by rewards, without making any again.

    Each becomes a column reward_NAME of the results. What could not be judged is null there, never 0. Broken off, it
    goes on where it was.
    """
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        handle = client.get(job)
        made = list(_made(handle, _checked(handle, names), again, partial, out))
    if out.as_json:
        out.json({"id": handle.id, "rewards": made})
    elif out.quiet:
        out.data(handle.id)
    else:
        _show(made, out)


def _checked(handle: JobHandle, names: Sequence[str] | None) -> list[str]:
    """The rewards that were asked for, each once, before any is run. Raises UsageError for one that is not there."""
    from jobs.rewards import installed
    from jobs.rewards.registry import unknown

    chosen = list(dict.fromkeys(names or handle.record.spec.get("rewards") or ()))
    if not chosen:
        raise UsageError(
            f"job {handle.id} was submitted without rewards: name one with --reward ({', '.join(installed())})"
        )
    wrong = [why for why in map(unknown, chosen) if why is not None]
    if wrong:
        raise UsageError(f"--reward: {'; '.join(wrong)}")
    return chosen


def _made(handle: JobHandle, names: Sequence[str], again: bool, partial: bool, out: Output) -> Iterator[Rewarded]:
    for name in names:
        with _bar(name, out) as on_shard:
            yield handle.reward(name, again=again, partial=partial, on_shard=on_shard)


@contextmanager
def _bar(name: str, out: Output) -> Iterator[Callable[[int, int], None]]:
    """A bar over the shards, on a terminal, gone when they are judged."""
    from rich.progress import Progress

    shown = sys.stderr.isatty() and not out.quiet
    with Progress(console=stderr_console(), transient=True, disable=not shown) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _show(made: Sequence[Rewarded], out: Output) -> None:
    def row(one: Rewarded) -> list[str]:
        mean = "" if one.mean is None else minus(f"{one.mean:.4f}")
        return [one.name, f"{one.sequences:,}", mean, f"{one.unjudged:,}", f"{one.shards:,}", f"{one.skipped:,}"]

    out.table(["REWARD", "SEQUENCES", "MEAN", "UNJUDGED", "SHARDS", "SKIPPED"], map(row, made))
    for one in made:
        for reason, count in list(one.reasons.items())[:_REASONS_SHOWN]:
            out.hint(f"{one.name}: {plural(count, 'sequence')} not judged: {reason}")
