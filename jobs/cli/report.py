"""`report`: what jobs' sequences say in figures, one row a job: a sweep over checkpoints is read downwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.output import JsonFlag, Output, QuietFlag, stderr_console, stdout_console
from jobs.errors import UsageError
from jobs.text import clean_line

if TYPE_CHECKING:
    from jobs.client import JobHandle
    from jobs.report import Report, Study
    from jobs.report_table import Table


def report(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Jobs, by id, prefix or name.")],
    reward: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Reward that tells right from wrong; default: math_answer if a job has it."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take what there is of an unfinished job.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table on standard output.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with charts to this file.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Report accuracy, pass@k, entropy, log-probability and lengths of jobs, side by side.

    Without --reward and math_answer, the text of the <answer> block must equal the gold answer. pass@k is the unbiased
    estimate; the accuracy's interval (95 %) counts prompts, not responses. KL and ESS compare the model's distribution
    with the one that was sampled from; drift is the log-probabilities' mean distance from float32, as workers measure
    it with narrow weights. --json has every figure of every k. What `score` made is also compared with
    the job whose sequences it scored.
    """
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    if markdown and (as_json or quiet):
        raise UsageError("--markdown, --json and --quiet are forms of output; give one of them")
    if html is not None:
        _check_place(html)
    with Client() as client:
        handles = [client.get(job) for job in jobs]
        studies = list(_made(handles, reward, partial, out))
    reports = [study.report for study in studies]
    if html is not None:
        _write(html, studies, out)
    if out.as_json:
        out.json(reports if len(reports) > 1 else reports[0])
    elif out.quiet:
        for made in reports:
            out.data(made.id)
    else:
        _show(reports, out, markdown=markdown)


def _show(reports: Sequence[Report], out: Output, *, markdown: bool) -> None:
    from jobs.compared_table import comparison_of
    from jobs.report_table import notes, table_of

    table = table_of(reports)
    if markdown:
        _markdown(out, *table)
    else:
        _folded(out, table)
    if (comparison := comparison_of(reports)) is not None:
        out.data("")
        if markdown:
            _markdown(out, *comparison)
        else:
            _folded(out, comparison)
    for note in notes(reports):
        out.hint(note)


def _check_place(path: Path) -> None:
    """Before an hour's shards are read, not after."""
    if not path.parent.is_dir():
        raise UsageError(f"--html: there is no folder {path.parent}; make it, or name another file")
    if path.is_dir():
        raise UsageError(f"--html: {path} is a folder; name a file in it")


def _write(path: Path, studies: Sequence[Study], out: Output) -> None:
    from jobs.charts.page import write_html

    write_html(path, studies)
    out.hint(f"Wrote {path}")


def _made(handles: Sequence[JobHandle], reward: str | None, partial: bool, out: Output) -> Iterator[Study]:
    from jobs.report import study

    for handle in handles:
        with _bar(handle, out) as on_shard:
            yield study(handle, reward=reward, partial=partial, on_shard=on_shard)


@contextmanager
def _bar(handle: JobHandle, out: Output) -> Iterator[Callable[[int], None]]:
    """A bar over the shards that are read, on a terminal, gone when they are."""
    from rich.progress import Progress

    shown = sys.stderr.isatty() and not out.quiet
    with Progress(console=stderr_console(), transient=True, disable=not shown) as progress:
        task = progress.add_task(handle.id, total=handle.record.done_shards or None)
        yield lambda done: progress.update(task, completed=done)


def _folded(out: Output, table: Table) -> None:
    """Folded to the width of a terminal; a file gets each row in one line."""
    from jobs.report_table import folded

    width = stdout_console().width
    for n, part in enumerate(folded(table, width)):
        if n:
            out.data("")
        out.table(*part)


def _markdown(out: Output, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        out.data("| " + " | ".join(clean_line(cell).replace("|", "\\|") for cell in row) + " |")
