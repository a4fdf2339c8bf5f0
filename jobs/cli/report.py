"""`report`: what jobs' sequences say in figures, one row a job: a sweep over checkpoints is read downwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.output import JsonFlag, Output, QuietFlag, stderr_console
from jobs.errors import UsageError
from jobs.text import clean_line, minus

if TYPE_CHECKING:
    from jobs.client import JobHandle
    from jobs.report import Report, Spread

_Column = tuple[str, Callable[["Report"], str | None]]


def report(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Jobs, by id, prefix or name.")],
    reward: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Reward that tells right from wrong; default: math_answer if a job has it."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take what there is of an unfinished job.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table on standard output.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Report accuracy, pass@k, entropy, log-probability and lengths of jobs, side by side.

    Without --reward and math_answer, the text of the <answer> block must equal the gold answer. pass@k is the unbiased
    estimate; the accuracy's interval (95 %) counts prompts, not responses. KL and ESS compare
    the model's distribution with the one that was sampled from. --json has every figure of every k.
    """
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    if markdown and (as_json or quiet):
        raise UsageError("--markdown, --json and --quiet are forms of output; give one of them")
    with Client() as client:
        handles = [client.get(job) for job in jobs]
        reports = list(_made(handles, reward, partial, out))
    if out.as_json:
        out.json(reports if len(reports) > 1 else reports[0])
    elif out.quiet:
        for made in reports:
            out.data(made.id)
    else:
        header, rows = _table(reports)
        if markdown:
            _markdown(out, header, rows)
        else:
            out.table(header, rows)


def _made(handles: Sequence[JobHandle], reward: str | None, partial: bool, out: Output) -> Iterator[Report]:
    from jobs.report import report as made

    for handle in handles:
        with _bar(handle, out) as on_shard:
            yield made(handle, reward=reward, partial=partial, on_shard=on_shard)


@contextmanager
def _bar(handle: JobHandle, out: Output) -> Iterator[Callable[[int], None]]:
    """A bar over the shards that are read, on a terminal, gone when they are."""
    from rich.progress import Progress

    shown = sys.stderr.isatty() and not out.quiet
    with Progress(console=stderr_console(), transient=True, disable=not shown) as progress:
        task = progress.add_task(handle.id, total=handle.record.done_shards or None)
        yield lambda done: progress.update(task, completed=done)


def _table(reports: Sequence[Report]) -> tuple[list[str], list[list[str]]]:
    """The columns that any of the reports has something for."""
    columns = [*_BEFORE, *_passes(reports), *_AFTER]
    cells = {title: [of(made) for made in reports] for title, of in columns}
    cells = {title: found for title, found in cells.items() if any(cell is not None for cell in found)}
    return list(cells), [[cell or "" for cell in row] for row in zip(*cells.values(), strict=True)]


def _passes(reports: Sequence[Report]) -> list[_Column]:
    """pass@k for the powers of two, and for each job's own G."""
    known = {k for made in reports for k in made.pass_at_k}
    ends = {len(made.pass_at_k) for made in reports}
    shown = sorted(k for k in known - {1} if k in ends or k.bit_count() == 1)
    return [(f"PASS@{k}", lambda made, k=k: _percent(made.pass_at_k.get(k))) for k in shown]  # type: ignore[misc]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _accuracy(made: Report) -> str | None:
    if made.accuracy is None:
        return None
    mean, low, high = (100 * bound for bound in made.accuracy)
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _reward(made: Report) -> str | None:
    """The mean and its standard error, of a reward that is no accuracy."""
    if made.mean_reward is None or made.accuracy is not None:
        return None
    error = "" if made.mean_reward_error is None else f" ± {made.mean_reward_error:.4f}"
    return minus(f"{made.mean_reward:.4f}") + error


def _mean(spread: Spread | None) -> str | None:
    return None if spread is None else minus(f"{spread.mean:.4f}")


def _cut(made: Report) -> str | None:
    return _percent(made.finish_reasons.get("length", 0) / made.sequences) if made.sequences else None


_BEFORE: list[_Column] = [
    ("ID", lambda made: made.id),
    ("NAME", lambda made: made.name),
    ("MODEL", lambda made: made.model),
    ("ADAPTER", lambda made: made.adapter),
    ("SEQUENCES", lambda made: f"{made.sequences:,}"),
    ("ACCURACY [95 %]", _accuracy),
    ("REWARD", _reward),
    ("BY", lambda made: made.reward),
    ("UNJUDGED", lambda made: f"{made.unjudged:,}" if made.reward and made.unjudged else None),
]
_AFTER: list[_Column] = [
    ("ENTROPY", lambda made: _mean(made.entropy)),
    ("LOGPROB", lambda made: _mean(made.logprob)),
    ("LENGTH", lambda made: None if made.mean_length is None else f"{made.mean_length:,.1f}"),
    ("CUT", _cut),
    ("KL", lambda made: None if made.apart is None else minus(f"{made.apart.kl:.4f}")),
    ("ESS", lambda made: None if made.apart is None else _percent(made.apart.ess_share)),
]


def _markdown(out: Output, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        out.data("| " + " | ".join(clean_line(cell).replace("|", "\\|") for cell in row) + " |")
