"""`score`: a job's sequences under another model, adapter or checkpoint, as a job of its own, which is followed."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.follow import DryRunFlag, LocalFlag, TrackFlag, follow
from jobs.cli.output import JobArgument, JsonFlag, Output, QuietFlag
from jobs.cli.spec_options import SpecCommand, to_fields
from jobs.cli.submit import announce, check_following, counter, leave, show_plan


class ScoreCommand(SpecCommand):
    """A command that takes those fields of JobSpec that mean something where sequences are given."""

    fields = (
        *("model", "revision", "adapter", "merge_adapter", "dtype", "tokenizer"),
        *("temperature", "top_p", "deterministic", "tf_batch_size", "head_dtype"),
        *("measurements", "diagnostics", "top_k_alternatives"),
        *("name", "labels", "priority", "queue", "shard_size", "ttl", "webhook", "idempotency_key"),
    )


def score(
    ctx: typer.Context,
    job: JobArgument,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not follow the new job.")] = False,
    local: LocalFlag = False,
    track: TrackFlag = None,
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Score a job's sequences under another model, adapter or checkpoint, and say how far they moved.

    JOB must have ended. Its tokens are scored as they stand, by a job of its own, which is followed; what is not given
    is as JOB has it. Later: seqproc report NEW. In Python job.compared() has the log-ratios of every token.
    """
    out = Output(as_json=as_json, quiet=quiet)
    check_following(detach=detach, local=local, track=track)
    from jobs.client import Client
    from jobs.source import scoring
    from jobs.spec import JobSpec

    with Client() as client:
        spec = JobSpec.parse(scoring(client.get(job).record, to_fields(ctx.obj)))
        if dry_run:
            show_plan(client.plan(spec), out)
            return
        with counter(out, "sequences") as count:
            handle = client.submit(spec, on_prompt=count)
        announce(handle, out)
        if detach:
            leave(client, handle, out)
            return
        code = follow(handle, out, local=local, print_id=False, track=track)
        if code == 0 and not (out.as_json or out.quiet):
            from jobs.compared_table import comparison_table

            out.table(*comparison_table([(handle.id, handle.compared().summary())]))
        raise typer.Exit(code)
