"""`seqproc web`: the server, on loopback unless told otherwise, and then only with a token.

Importing this module loads nothing heavy: `seqproc --help` lists the command.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import SeqprocError, UsageError

if TYPE_CHECKING:
    import uvicorn

    from jobs.settings import Settings

PORT = 8642
_CONNECTIONS = 1_000
_KEEP_ALIVE_SECONDS = 15  # longer than a page waits between two polls
_FAREWELL_SECONDS = 10  # for what is under way when the server is to leave


def web(
    host: Annotated[str, typer.Option(help="Address; any but loopback needs SEQPROC_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = PORT,
) -> None:
    """Serve the page and the HTTP API. `seqproc up` does so for one person, workers included."""
    from jobs.settings import Settings

    settings = Settings.load()
    with listen(settings, host, port) as listener:
        serving(settings, listener).run(sockets=[listener])


def listen(settings: Settings, host: str, port: int) -> socket.socket:
    """Where the server is to be reached.

    Raises UsageError if others could reach it and it had no token, SeqprocError if it cannot listen there.
    """
    from webui.guard import is_loopback

    family, address = _resolve(host, port)
    if not is_loopback(address) and settings.token is None and not settings.tokens:
        raise UsageError(
            f"{host} can be reached from other machines, and SEQPROC_TOKEN is not set: set it to a long random text, "
            "or leave out --host"
        )
    try:
        listener = socket.create_server((address, port), family=family)
    except OSError as error:
        raise SeqprocError(
            f"cannot listen on {address} port {port}: {os.strerror(error.errno or 0)}; choose another with --port"
        ) from None
    # Its connections inherit this. asyncio sees to it only on sockets made in its own way, and without it the second
    # part of an answer on a connection in use waits 40 ms for the other side to acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address_of(listener: socket.socket) -> str:
    """`http://127.0.0.1:8642`"""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def serving(
    settings: Settings, listener: socket.socket, *, every_second: Callable[[], None] | None = None
) -> uvicorn.Server:
    """A server of the application, to be run until SIGTERM or Ctrl-C. From now on this process logs.

    `every_second` is called, in the thread that runs it, while it serves.
    """
    import logging

    import uvicorn

    from jobs.log_lines import JsonLines, on_stderr, send
    from webui.app import create_app
    from webui.connection import PatientProtocol
    from webui.guard import is_loopback

    send(
        dict.fromkeys(("jobs", "webui", "uvicorn"), logging.INFO),
        [on_stderr(JsonLines(lambda: {"web": os.getpid()}))],
    )
    logging.getLogger("webui").info("listening on %s", address_of(listener))
    app = create_app(settings, loopback=is_loopback(listener.getsockname()[0]))

    async def notify() -> None:
        if every_second is not None:
            every_second()

    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,  # health checks and scrapes come every few seconds and say nothing
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_FAREWELL_SECONDS,
        callback_notify=notify,
        timeout_notify=0,  # uvicorn looks once a second
    )
    return uvicorn.Server(config)


def _resolve(host: str, port: int) -> tuple[int, str]:
    """(address family, address) to listen on, the very one that is judged. Raises UsageError."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host: {host!r} is no address of this machine: {error}") from None
    family, _, _, _, place = found[0]
    return family, str(place[0])
