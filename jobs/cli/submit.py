"""`submit`: prompts and a spec become a job, which is then followed to its end, or left (`-d`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from jobs.cli.feed import feed
from jobs.cli.follow import DryRunFlag, LocalFlag, TrackFlag, follow
from jobs.cli.output import JsonFlag, Output, QuietFlag, hint_unrung, stderr_console
from jobs.cli.spec_options import to_fields
from jobs.errors import UsageError
from jobs.text import plural
from jobs.tracking.names import Track, require

if TYPE_CHECKING:
    from jobs.client import Client, JobHandle
    from jobs.spec import JobSpec
    from jobs.submit import Plan

_COUNT_EVERY = 5_000  # prompts between updates of the counter


def submit(
    ctx: typer.Context,
    from_file: Annotated[
        str | None, typer.Argument(metavar="FILE|-", help="JSONL, CSV or Parquet file of prompts; - is standard input.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Take prompts from standard input as they come; workers begin at once.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not follow the job.")] = False,
    local: LocalFlag = False,
    track: TrackFlag = None,
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Submit a job and follow it.

    Prompts come from a FILE, from standard input (-), from --prompts, or from --dataset.
    """
    out = Output(as_json=as_json, quiet=quiet)
    check_following(detach=detach, local=local, track=track)
    spec = _spec(from_file, ctx.obj)
    stdin = sys.stdin.buffer if spec.file == "-" else None
    if stream:
        if stdin is None or dry_run:
            raise UsageError("--stream takes prompts as they come, from standard input: give - and no --dry-run")
        raise typer.Exit(feed(spec, out, detach=detach, local=local, track=track))

    from jobs.client import Client

    if dry_run:
        show_plan(_plan(spec, stdin), out)
        return
    with Client() as client:
        with counter(out) as count:
            handle = client.submit(spec, stdin=stdin, on_prompt=count)
        announce(handle, out)
        if detach:
            leave(client, handle, out)
        else:
            raise typer.Exit(follow(handle, out, local=local, print_id=False, track=track))


def check_following(*, detach: bool, local: bool, track: Track | None) -> None:
    """Raises UsageError, before anything is stored, if a job cannot be followed, or left, in this way."""
    if detach and local:
        raise UsageError("--detach leaves the job to other workers and --local runs one here; give one of them")
    if detach and track:
        raise UsageError(f"a job that is left is tracked by who watches it: seqproc watch JOB --track {track}")
    if track:
        require(track)  # before anything is stored


def _spec(source: str | None, options: dict[str, Any]) -> JobSpec:
    from jobs.spec import JobSpec

    fields = to_fields(options)
    if source is not None and "file" in fields:
        raise UsageError(f"prompts come from one file, but {source} and --file {fields['file']} are given")
    if source is not None:
        fields["file"] = source
    spec = JobSpec.parse(fields)
    if all(place is None for place in (spec.prompts, spec.file, spec.dataset, spec.source)):
        raise UsageError("no prompts: give a FILE, - for standard input, --prompts TEXT or --dataset NAME")
    return spec


def _plan(spec: JobSpec, stdin: BinaryIO | None) -> Plan:
    from jobs.client import Client

    with Client() as client:
        return client.plan(spec, stdin=stdin)


def show_plan(plan: Plan, out: Output) -> None:
    """What a submit would make."""
    counts = {"num_prompts": plan.num_prompts, "num_sequences": plan.num_sequences, "num_shards": plan.num_shards}
    if out.as_json:
        out.json({"spec": plan.spec.stored(), **counts})
    elif not out.quiet:
        for name, value in {**plan.spec.stored(), **counts}.items():
            out.data(f"{name}: {json.dumps(value, ensure_ascii=False)}")
        out.hint("Nothing was stored.")


@contextmanager
def counter(out: Output, what: str = "prompts") -> Iterator[Callable[[int], None]]:
    """What to call with the number of prompts read so far; on a terminal it counts up while a long file is read."""
    console = stderr_console()
    if out.quiet or not console.is_terminal:
        yield lambda _count: None
        return
    with console.status(f"Reading {what}") as status:

        def count(number: int) -> None:
            if number % _COUNT_EVERY == 0:
                status.update(f"Reading {what}: {number:,}")

        yield count


def announce(handle: JobHandle, out: Output) -> None:
    """The id at once, so that a follower that is killed leaves it behind; `--json` prints the job when it is left."""
    job = handle.record
    if handle.created:
        sequences, shards = plural(job.num_sequences, "sequence"), plural(job.num_shards, "shard")
        out.hint(f"Submitted: {plural(job.num_prompts, 'prompt')} × {job.spec['G']} = {sequences} in {shards}")
    else:
        out.hint(f"Submitted before under this idempotency key; this is that job, {job.state}")
    if handle.ignored_columns:
        out.hint(f"Columns that say nothing to a job were left alone: {', '.join(handle.ignored_columns)}")
    hint_unrung(handle.unrung, out)
    if not out.as_json:
        out.data(job.id)


def leave(client: Client, handle: JobHandle, out: Output) -> None:
    """How to come back to a job that is not followed."""
    from jobs.presence import serving

    if out.as_json:
        out.json(handle.record)
    if handle.record.state.ended:
        return
    if not serving(client.store, handle.record.queue):
        out.hint(f"No worker is alive for queue {handle.record.queue}: the job waits until one is (seqproc worker)")
        out.hint(f"Run it here: seqproc wait {handle.id}")
    out.hint(f"Watch it: seqproc watch {handle.id}   Fetch it: seqproc fetch {handle.id} -o DIR")
