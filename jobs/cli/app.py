"""The command `seqproc`: its verbs, and what becomes of everything that goes wrong in one.

Exit codes: 0 done; 1 failed; 2 asked wrongly; 124 waited too long; 130 Ctrl-C, which never cancels a job.
Importing this loads neither the store nor a model: commands import what they need when they run.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobs.cli import (
    db,
    doctor,
    fetch,
    follow,
    gc,
    listing,
    logs,
    report,
    reward,
    score,
    show,
    steer,
    stream,
    submit,
    workers,
)
from jobs.cli.output import error
from jobs.cli.spec_options import SpecCommand, with_flags
from jobs.errors import SeqprocError, SpecError

DISTRIBUTION = "sequence-processor"
DEBUG = "SEQPROC_DEBUG"


class Seqproc(TyperGroup):
    """The group of all commands: a failure of any becomes one sentence and an exit code here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SeqprocError as failure:
            error(_sentence(with_flags(failure) if isinstance(failure, SpecError) else failure))
            raise typer.Exit(failure.exit_code) from None
        except typer.TyperException as failure:
            failure.message = failure.message.replace("Value error, ", "", 1)  # pydantic's, of a choice that is none
            raise
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as failure:
            if os.environ.get(DEBUG):
                raise
            error(f"{type(failure).__name__}: {failure}\nThis was not foreseen; {DEBUG}=1 shows where it happened.")
            raise typer.Exit(1) from None


def _sentence(failure: SeqprocError) -> str:
    """The message; several problems stand below each other."""
    text = str(failure)
    return f"the job cannot be submitted:\n{text}" if isinstance(failure, SpecError) and "\n" in text else text


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"seqproc {version(DISTRIBUTION)}")
        raise typer.Exit


def _root(
    _asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Submit a job, walk away, fetch measured sequences: sampled responses with exact per-token log-probabilities and
    entropies."""


def build() -> typer.Typer:
    """The application: the commands of this package and those that others bring by entry point."""
    app = typer.Typer(
        cls=Seqproc,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # plain help: fast, and never markup
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    app.command(cls=SpecCommand)(submit.submit)
    app.command("list")(listing.list_jobs)
    app.command("ls", hidden=True)(listing.list_jobs)
    app.command()(listing.status)
    app.command()(follow.watch)
    app.command()(follow.wait)
    app.command()(logs.logs)
    app.command()(steer.cancel)
    app.command()(steer.retry)
    app.command()(stream.stream)
    app.command()(fetch.fetch)
    app.command()(show.show)
    app.command()(reward.reward)
    app.command()(report.report)
    app.command(cls=score.ScoreCommand)(score.score)
    _add_plugins(app)
    app.command()(workers.workers)
    app.command()(doctor.doctor)
    app.command()(gc.gc)
    app.command()(gc.delete)
    app.add_typer(db.app, name="db")
    return app


def _add_plugins(app: typer.Typer) -> None:
    """Commands of the entry-point group `seqproc.commands`; one that cannot be loaded takes no other along."""
    for entry in entry_points(group="seqproc.commands"):
        try:
            command = entry.load()
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=entry.name)
            else:
                app.command(entry.name)(command)
        except Exception as failure:
            typer.echo(f"seqproc {entry.name} is not available: {type(failure).__name__}: {failure}", err=True)


app = build()
