"""What a person or a script sees, from one place: data on stdout, hints and errors on stderr.

Three forms of data: human, `--json` (a job is one object with its `id`), `-q` (ids only, and no hints).
Text that came from elsewhere (prompts, responses, names, errors) is hostile: every character that could steer a
terminal is taken out before it is shown, and nothing is ever read as markup. JSON is pure ASCII for the same reason.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from jobs.errors import UsageError
from jobs.redact import without_credentials
from jobs.text import clean, clean_line

if TYPE_CHECKING:
    from rich.console import Console

JsonFlag = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Ids only, no hints.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, a prefix that only it has, or its name.")]

_PIPE_WIDTH = 10_000  # columns of a table that goes to a file: nothing is ever cut there


class Output:
    """The form of output that one command was asked for."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        if as_json and quiet:
            raise UsageError("--json and --quiet are two forms of output; give one of them")
        self.as_json = as_json
        self.quiet = quiet

    def data(self, text: str) -> None:
        """A line, or lines, of what was asked for."""
        typer.echo(clean(text))

    def hint(self, text: str) -> None:
        """Something good to know, that no script depends on."""
        if not self.quiet:
            typer.echo(clean(text), err=True)

    def json(self, value: Any) -> None:
        """`value` as JSON: dataclasses as objects, floats that JSON has no word for as null."""
        typer.echo(json.dumps(_plain(value), indent=2 if sys.stdout.isatty() else None, allow_nan=False))

    def answer(self, value: Any, job_id: str, *lines: str) -> None:
        """What came of a job: `value` as JSON, its id, or for people these lines."""
        if self.as_json:
            self.json(value)
        else:
            for line in (job_id,) if self.quiet else lines:
                self.data(line)

    def listing(
        self, items: Sequence[Any], header: Sequence[str], row: Callable[[Any], Sequence[str]], *, none: str
    ) -> None:
        """Things that have an `id`: as JSON, their ids, or for people a row each, or the hint `none`."""
        if self.as_json:
            self.json(items)
        elif self.quiet:
            for item in items:
                self.data(item.id)
        elif not items:
            self.hint(none)
        else:
            self.table(header, map(row, items))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Aligned columns; on a terminal a row stays one line."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in header:
            table.add_column(title, no_wrap=True, overflow="ellipsis")
        for row in rows:
            table.add_row(*(Text(clean_line(cell)) for cell in row))
        console = stdout_console()
        with console.capture() as capture:
            console.print(table)
        typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def error(text: str) -> None:
    """A failure, in one sentence that names the remedy. A library's words in it may hold credentials: not shown."""
    typer.echo(f"Error: {clean(without_credentials(text))}", err=True)


def warning(text: str) -> None:
    """Something that went wrong beside what was asked for."""
    typer.echo(f"Warning: {clean(without_credentials(text))}", err=True)


def hint_unrung(why: str | None, out: Output) -> None:
    """Say so if a job was stored and workers could not be rung for it."""
    if why is not None:
        out.hint(f"Workers were not rung ({why}); they find the job at their next look")


def stdout_console() -> Console:
    """A console for data. Its colours follow the terminal, NO_COLOR and FORCE_COLOR."""
    return _console(sys.stdout)


def stderr_console() -> Console:
    """A console for progress."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    from rich.console import Console

    width = None if file.isatty() else _PIPE_WIDTH
    return Console(file=file, markup=False, highlight=False, emoji=False, width=width)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None  # −inf: a token outside the nucleus
    return value if value is None or isinstance(value, bool | int | str) else str(value)
