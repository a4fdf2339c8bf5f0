"""`seqproc worker`: one process that serves queues until it is told to leave, or until nothing is left.

Importing this module loads nothing heavy: `seqproc --help` lists the command.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import CannotGoOn, StoreError

if TYPE_CHECKING:
    from jobs.settings import Settings
    from worker.stop import Stop

# The drain, the bell and the heartbeat share one interpreter: a ring shall not wait 5 ms, Python's default, for a turn.
_SWITCH_SECONDS = 0.0005


def worker(
    queue: Annotated[list[str] | None, typer.Option(help="Queue to serve; repeat for several.")] = None,
    idle_exit: Annotated[bool, typer.Option("--idle-exit", help="Leave when no work is left.")] = False,
    gpus: Annotated[
        str | None, typer.Option(metavar="all|N,N", help="One worker process for each of these GPUs, kept running.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log to the worker's file only.")] = False,
) -> None:
    """Run jobs: claim shards, generate, write results. One process serves one GPU."""
    from jobs.settings import Settings

    settings, queues = Settings.load(), queue or ["default"]
    if gpus is None:
        serve(settings, queues, idle_exit=idle_exit, quiet=quiet)
    else:
        from worker.fleet import serve_on

        raise typer.Exit(serve_on(gpus, settings, queues, idle_exit=idle_exit, quiet=quiet))


def serve(settings: Settings, queues: list[str], *, idle_exit: bool, quiet: bool) -> None:
    """The life of one worker process. SIGTERM or Ctrl-C hands the shard back and leaves; a second one leaves at once.

    Raises StoreError or ResultsError if database or results folder are not to be had, CannotGoOn with --idle-exit.
    """
    from jobs.paths import worker_log
    from jobs.store import Store
    from jobs.store_id import check_root
    from worker.bell import the_bell
    from worker.drain import Drain
    from worker.engine import CoreEngine
    from worker.faults import DeviceLost
    from worker.logs import log_to
    from worker.metrics import serve_metrics
    from worker.stop import Stop
    from worker.watchdog import Watchdog
    from worker.webhooks import delivering

    # Threads that spin between steps are 15 % faster alone and three times slower beside another worker on the same
    # cores (tiny-arithmetic, 2 cores). Read once, when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.setswitchinterval(_SWITCH_SECONDS)
    stop = Stop()
    leave_on_signals(stop)
    store = Store.open(settings)
    try:
        check_root(store, settings.results)
        worker_id = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        log_file = worker_log(settings.results, worker_id)
        log_to(log_file, worker_id, quiet=quiet)
        engine = CoreEngine(settings.trusted_models, settings.model_roots)
        with the_bell(store, settings, queues) as bell:
            drain = Drain(store, settings, engine, worker_id, queues, stop, bell)
            drain.register()
            if settings.metrics_port:
                serve_metrics(settings.metrics_port)
            try:
                with Watchdog(drain.vitals, settings.watchdog_seconds, log_file), delivering(store, settings, stop):
                    if not idle_exit:
                        drain.until_stopped()
                    elif (why := drain.until_idle()) is not None:
                        raise CannotGoOn(why)
            except DeviceLost as lost:
                raise CannotGoOn(f"{lost}; start a new worker") from lost
            finally:
                # Also when a second signal cut a shard short: what is ours goes back before nobody answers for it.
                with suppress(StoreError):
                    store.hand_back_all(worker_id, "the worker left")
                    store.forget_worker(worker_id)
    finally:
        store.close()


def leave_on_signals(stop: Stop) -> None:
    """SIGTERM and Ctrl-C set `stop`; one more of them leaves at once, with SystemExit."""

    def leave(number: int, _frame: Any) -> None:
        if stop.is_set():
            raise SystemExit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
