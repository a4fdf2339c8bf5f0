"""`seqproc up`: the page and workers in one command, for one person on one machine.

Whoever has an account on the machine reaches loopback, so there is a token, made once and kept in the home. Workers are
child processes that are kept running; Ctrl-C ends the page and then them.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from jobs.errors import SeqprocError, UsageError
from webui.command import PORT, address_of, listen, serving

if TYPE_CHECKING:
    import socket

    from pydantic import SecretStr

    from jobs.kept import Kept
    from jobs.settings import Settings

log = logging.getLogger(__name__)


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    gpus: Annotated[
        str | None, typer.Option(metavar="all|N,N", help="Instead, one worker process for each of these GPUs.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0: any that is free.")] = PORT,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Run workers and serve the page on this machine, until Ctrl-C."""
    from jobs.cli.output import Output
    from jobs.settings import Settings
    from jobs.text import plural

    if gpus is not None and workers > 1:
        raise UsageError("--workers and --gpus both say how many workers there are; give one of them")
    settings = Settings.load()
    with _alone(settings) as note:
        _prepare(settings)
        token = settings.token or kept_token(settings.home.expanduser() / "token")
        with listen(settings, "127.0.0.1", port) as listener:
            note.write_text(address_of(listener))
            page = f"{address_of(listener)}/?token={quote(token.get_secret_value(), safe='')}"
            who = plural(workers, "worker") if gpus is None else f"a worker on each GPU ({gpus})"

            def announce() -> None:
                out = Output()
                out.hint(f"The page is at the address below, {who} beside it. Ctrl-C ends all.")
                out.data(page)
                if open_page:
                    import webbrowser

                    webbrowser.open(page)

            guarded = settings.model_copy(update={"token": token})
            _run(guarded, listener, _children(settings, workers, gpus), announce)


def kept_token(path: Path) -> SecretStr:
    """The token in this file, made if there is none, or one that others may have read. Raises ResultsError."""
    import secrets

    from pydantic import SecretStr

    from jobs.files import reading, replacing

    if path.exists():
        with reading(path):
            if path.stat().st_mode & 0o077 == 0 and (token := path.read_text(encoding="utf-8").strip()):
                return SecretStr(token)
    made = secrets.token_urlsafe(32)
    with replacing(path) as temporary:
        temporary.touch(0o600)
        temporary.write_text(made + "\n", encoding="utf-8")
    return SecretStr(made)


@contextmanager
def _alone(settings: Settings) -> Iterator[Path]:
    """One `up` a home; yields the file that tells others where its page is. Raises SeqprocError for a second one."""
    from filelock import FileLock, Timeout

    from jobs.files import make_folder

    home = settings.home.expanduser()
    make_folder(home)
    note = home / "up.address"
    lock = FileLock(home / "up.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        place = f", its page is at {note.read_text()}" if note.exists() else ""
        raise SeqprocError(
            f"`seqproc up` runs on {home} already{place}: end it there with Ctrl-C, or give this one another home "
            "(SEQPROC_HOME)"
        ) from None
    try:
        yield note
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _prepare(settings: Settings) -> None:
    """What is wrong for the page and every worker is said once. Raises StoreError, ResultsError."""
    from jobs.store import Store
    from jobs.store_id import check_root

    Store.migrate(settings)
    with closing(Store.open(settings)) as store:
        check_root(store, settings.results)


def _children(settings: Settings, workers: int, gpus: str | None) -> list[Kept]:
    from jobs.child import worker_command
    from jobs.kept import Kept
    from jobs.settings import WEB_SECRETS

    command = worker_command("--quiet")
    withheld = {f"SEQPROC_{name.upper()}" for name in WEB_SECRETS}
    environment = {name: value for name, value in os.environ.items() if name not in withheld}

    def child(number: int) -> Kept:
        called = f"worker {number + 1}" if workers > 1 else "the worker"
        port = {"SEQPROC_METRICS_PORT": str(settings.metrics_port + number)} if settings.metrics_port else {}
        return Kept(called, command, log.warning, environment | port, ends_with=())

    if gpus is not None:
        return [Kept("the workers' parent", [*command, "--gpus", gpus], log.warning, environment, ends_with=())]
    return [child(number) for number in range(workers)]


def _run(settings: Settings, listener: socket.socket, children: Sequence[Kept], announce: Callable[[], None]) -> None:
    """Serve, and keep the children running; end the page first and then them, all at once at a second signal."""
    from jobs import kept

    def look() -> None:
        for child in children:
            child.look()

    server = serving(settings, listener, every_second=look)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    asked: list[int] = []

    def leave(number: int, _frame: Any) -> None:  # uvicorn, when it has ended, hands on the signal that ended it
        server.should_exit = True
        asked.append(number)
        if len(asked) > 1:
            raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    announce()
    try:
        server.run(sockets=[listener])
        log.info("the page is closed; the workers hand back what they have")
        kept.stop(children)
    finally:
        kept.stop_at_once(children)
